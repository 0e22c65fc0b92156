// See checked_json.h. The order of the checks matters: nothing is parsed before its bytes are known to be the written ones.
#include "vmstate/checked_json.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <span>

#include "transport/crc32c.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr std::string_view kChecksumWord = "crc32c ";
constexpr std::size_t kChecksumDigits = 8;
constexpr std::size_t kChecksumLineBytes = kChecksumWord.size() + kChecksumDigits + 1;
constexpr std::size_t kNestingMax = 64;
constexpr std::size_t kShownKeyBytesMax = 255;

std::uint32_t checksum_of(std::string_view text) {
  return crc32c(std::as_bytes(std::span(text.data(), text.size())));
}

// The object's line with its newline, once the checksum below it was right.
Result<std::string_view> checked_line(std::string_view text, const CheckedJsonFormat& format) {
  if (text.size() > format.bytes_max) {
    return fail(Errc::invalid, fmt::format("{} has {} bytes, at most {}", format.what, text.size(),
                                           format.bytes_max));
  }
  const auto newline = text.find('\n');
  if (newline == std::string_view::npos || text.size() - (newline + 1) != kChecksumLineBytes ||
      text.back() != '\n') {
    return fail(Errc::corrupt, fmt::format("{} of {} bytes is truncated or has more than two lines",
                                           format.what, text.size()));
  }
  const std::string_view line = text.substr(0, newline + 1);
  const std::string_view digits = text.substr(newline + 1 + kChecksumWord.size(), kChecksumDigits);
  std::uint32_t stored = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), stored, 16);
  if (text.substr(newline + 1, kChecksumWord.size()) != kChecksumWord || error != std::errc() ||
      end != digits.data() + digits.size()) {
    return fail(Errc::corrupt, fmt::format("{}'s second line is no checksum", format.what));
  }
  const std::uint32_t actual = checksum_of(line);
  if (actual != stored) {
    return fail(Errc::corrupt, fmt::format("{}'s checksum is {:08x}, its text has {:08x}",
                                           format.what, stored, actual));
  }
  return line;
}

// Nesting is bounded before parsing: what is built from JSON is also taken apart by recursion.
Result<void> check_nesting(std::string_view text, const CheckedJsonFormat& format) {
  std::size_t depth = 0;
  bool in_text = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_text && c == '\\') {
      ++i;
    } else if (c == '"') {
      in_text = !in_text;
    } else if (!in_text && (c == '{' || c == '[')) {
      if (++depth > kNestingMax) {
        return fail(Errc::invalid,
                    fmt::format("{} is nested deeper than {}", format.what, kNestingMax));
      }
    } else if (!in_text && (c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
  return {};
}

}  // namespace

Result<std::string> encode_checked_json(json object, const CheckedJsonFormat& format) {
  object["format"] = format.name;
  object["version"] = format.version;
  std::string text;
  try {
    text = object.dump() + "\n";
  } catch (const json::exception& e) {
    return fail(Errc::invalid, e.what());
  }
  text += fmt::format("{}{:08x}\n", kChecksumWord, checksum_of(text));
  return text;
}

Result<json> decode_checked_json(std::string_view text, const CheckedJsonFormat& format) {
  PF_ASSIGN(const std::string_view line, checked_line(text, format));
  PF_TRY(check_nesting(line, format));
  json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return fail(Errc::corrupt, fmt::format("{}'s first line is no JSON object", format.what));
  }
  const auto name = object.find("format");
  if (name == object.end() || *name != format.name) {
    return fail(Errc::version,
                fmt::format("this is no {}: member format is not {}", format.what, format.name));
  }
  const auto version = object.find("version");
  if (version == object.end() || *version != format.version) {
    return fail(Errc::version,
                fmt::format("{} has version {}, this program reads {}", format.what,
                            version == object.end() ? "none" : version->dump().substr(0, 20),
                            format.version));
  }
  return object;
}

JsonMembers::JsonMembers(const json& object, const CheckedJsonFormat& format, std::string name)
    : object_(object), format_(format), name_(std::move(name)) {
  if (name_.empty()) known_ = {"format", "version"};  // decode_checked_json() has read them
  if (!object_.is_object()) wrong("", "is no object");
}

std::string JsonMembers::text(const char* key, std::size_t bytes_min, std::size_t bytes_max) {
  const json* value = find(key);
  if (value == nullptr) return "";
  if (!value->is_string()) return wrong(key, "is no text"), "";
  const auto& found = value->get_ref<const std::string&>();
  if (found.size() < bytes_min || found.size() > bytes_max ||
      found.find('\0') != std::string::npos) {
    return wrong(key, fmt::format("has {} bytes, must have {} to {} and no NUL", found.size(),
                                  bytes_min, bytes_max)),
           "";
  }
  return found;
}

std::uint64_t JsonMembers::number(const char* key, std::uint64_t minimum, std::uint64_t maximum) {
  const json* value = find(key);
  if (value == nullptr) return 0;
  return number_in(*value, key, minimum, maximum);
}

bool JsonMembers::flag(const char* key) {
  const json* value = find(key);
  if (value == nullptr) return false;
  if (!value->is_boolean()) return wrong(key, "is neither true nor false"), false;
  return value->get<bool>();
}

const json& JsonMembers::object(const char* key) {
  static const json kEmpty = json::object();
  const json* value = find(key);
  if (value == nullptr) return kEmpty;
  if (!value->is_object()) return wrong(key, "is no object"), kEmpty;
  return *value;
}

const json& JsonMembers::list(const char* key, std::size_t entries_min, std::size_t entries_max) {
  static const json kEmpty = json::array();
  const json* value = find(key);
  if (value == nullptr) return kEmpty;
  if (!value->is_array()) return wrong(key, "is no list"), kEmpty;
  if (value->size() < entries_min || value->size() > entries_max) {
    return wrong(key, fmt::format("has {} entries, must have {} to {}", value->size(), entries_min,
                                  entries_max)),
           kEmpty;
  }
  return *value;
}

std::vector<std::string> JsonMembers::texts(const char* key, std::size_t entries_min,
                                            std::size_t entries_max, std::size_t bytes_max) {
  std::vector<std::string> result;
  for (const json& entry : list(key, entries_min, entries_max)) {
    if (!entry.is_string())
      return wrong(key, "has an entry that is no text"), std::vector<std::string>();
    result.push_back(entry.get<std::string>());
    if (result.back().size() > bytes_max || result.back().find('\0') != std::string::npos) {
      wrong(key, fmt::format("has an entry of {} bytes, at most {} and no NUL",
                             result.back().size(), bytes_max));
      return {};
    }
  }
  return result;
}

std::vector<std::uint32_t> JsonMembers::ids(const char* key, std::size_t entries_max) {
  std::vector<std::uint32_t> result;
  for (const json& entry : list(key, 0, entries_max)) {
    result.push_back(static_cast<std::uint32_t>(number_in(entry, key, 0, kIdMax)));
  }
  return result;
}

void JsonMembers::wrong(const std::string& key, std::string_view why) {
  if (error_.empty())
    error_ = fmt::format("{} member {}{}{} {}", format_.what, name_,
                         name_.empty() || key.empty() ? "" : ".", key, why);
}

Result<void> JsonMembers::finish() {
  if (object_.is_object()) {
    for (const auto& [key, value] : object_.items()) {
      if (known_.count(key) == 0)
        wrong(key.substr(0, kShownKeyBytesMax), "is not known to this version");
    }
  }
  if (error_.empty()) return {};
  return fail(Errc::invalid, error_);
}

const json* JsonMembers::find(const char* key) {
  known_.insert(key);
  if (!object_.is_object()) return nullptr;
  const auto value = object_.find(key);
  if (value != object_.end()) return &*value;
  wrong(key, "is missing");
  return nullptr;
}

std::uint64_t JsonMembers::number_in(const json& value, const char* key, std::uint64_t minimum,
                                     std::uint64_t maximum) {
  if (!value.is_number_unsigned()) return wrong(key, "is no whole number from 0 on"), 0;
  const auto number = value.get<std::uint64_t>();
  if (number < minimum || number > maximum) {
    return wrong(key, fmt::format("is {}, must be {} to {}", number, minimum, maximum)), 0;
  }
  return number;
}

}  // namespace pageferry
