// The text of a manifest. One JSON object, since people read it and QEMU's own answers are JSON; one checksum line below it, since a torn
// or edited manifest must not start a machine that is nearly the right one.
//
// Decoding trusts nothing: size, checksum and nesting are checked before JSON is parsed, then every member has a type and a limit, and
// a member that is not known is refused (an older program cannot know what it is for).
#include "vmstate/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>
#include <span>

#include "pager/page.h"
#include "transport/crc32c.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr std::string_view kFormatName = "pageferry-manifest";
constexpr std::string_view kChecksumWord = "crc32c ";
constexpr std::size_t kChecksumDigits = 8;
constexpr std::size_t kChecksumLineBytes = kChecksumWord.size() + kChecksumDigits + 1;
constexpr std::size_t kNestingMax = 64;
constexpr std::size_t kNameBytesMax = 255;
constexpr std::size_t kUuidBytes = 36;
constexpr std::size_t kAttemptBytesMax = 64;
constexpr std::uint64_t kIdMax = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kPidMax = std::uint64_t{1} << 22;  // the kernel's PID_MAX_LIMIT
constexpr std::uint64_t kNumberMax = std::numeric_limits<std::uint64_t>::max();

std::uint32_t checksum_of(std::string_view text) {
  return crc32c(std::as_bytes(std::span(text.data(), text.size())));
}

// Reads the members of one object. The first thing wrong is kept; what is read after it is empty and not used.
class Members {
 public:
  Members(const json& object, std::string name) : object_(object), name_(std::move(name)) {
    if (!object_.is_object()) wrong("", "is no object");
  }

  std::string text(const char* key, std::size_t bytes_min, std::size_t bytes_max) {
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

  std::uint64_t number(const char* key, std::uint64_t minimum, std::uint64_t maximum) {
    const json* value = find(key);
    if (value == nullptr) return 0;
    return number_in(*value, key, minimum, maximum);
  }

  bool flag(const char* key) {
    const json* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return wrong(key, "is neither true nor false"), false;
    return value->get<bool>();
  }

  const json& object(const char* key) {
    static const json kEmpty = json::object();
    const json* value = find(key);
    if (value == nullptr) return kEmpty;
    if (!value->is_object()) return wrong(key, "is no object"), kEmpty;
    return *value;
  }

  const json& list(const char* key, std::size_t entries_min, std::size_t entries_max) {
    static const json kEmpty = json::array();
    const json* value = find(key);
    if (value == nullptr) return kEmpty;
    if (!value->is_array()) return wrong(key, "is no list"), kEmpty;
    if (value->size() < entries_min || value->size() > entries_max) {
      return wrong(key, fmt::format("has {} entries, must have {} to {}", value->size(),
                                    entries_min, entries_max)),
             kEmpty;
    }
    return *value;
  }

  std::vector<std::string> texts(const char* key, std::size_t entries_min, std::size_t entries_max,
                                 std::size_t bytes_max) {
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

  std::vector<std::uint32_t> ids(const char* key, std::size_t entries_max) {
    std::vector<std::uint32_t> result;
    for (const json& entry : list(key, 0, entries_max)) {
      result.push_back(static_cast<std::uint32_t>(number_in(entry, key, 0, kIdMax)));
    }
    return result;
  }

  void wrong(const std::string& key, std::string_view why) {
    if (error_.empty())
      error_ = fmt::format("manifest member {}{}{} {}", name_,
                           name_.empty() || key.empty() ? "" : ".", key, why);
  }

  // All members were asked for, and all were right.
  Result<void> finish() {
    if (object_.is_object()) {
      for (const auto& [key, value] : object_.items()) {
        if (known_.count(key) == 0)
          wrong(key.substr(0, kNameBytesMax), "is not known to this version");
      }
    }
    if (error_.empty()) return {};
    return fail(Errc::invalid, error_);
  }

 private:
  const json* find(const char* key) {
    known_.insert(key);
    if (!object_.is_object()) return nullptr;
    const auto value = object_.find(key);
    if (value != object_.end()) return &*value;
    wrong(key, "is missing");
    return nullptr;
  }

  std::uint64_t number_in(const json& value, const char* key, std::uint64_t minimum,
                          std::uint64_t maximum) {
    if (!value.is_number_unsigned()) return wrong(key, "is no whole number from 0 on"), 0;
    const auto number = value.get<std::uint64_t>();
    if (number < minimum || number > maximum) {
      return wrong(key, fmt::format("is {}, must be {} to {}", number, minimum, maximum)), 0;
    }
    return number;
  }

  const json& object_;
  const std::string name_;
  std::set<std::string> known_;
  std::string error_;
};

json source_to_json(const VmManifest& manifest) {
  const QemuProcess& source = manifest.source;
  return {{"host", manifest.source_host},
          {"boot-id", manifest.source_boot_id},
          {"pid", source.identity.pid},
          {"start-ticks", source.identity.start_ticks},
          {"argv", source.argv},
          {"working-directory", source.working_directory},
          {"uid", source.uid},
          {"gid", source.gid},
          {"groups", source.groups},
          {"executable", source.executable},
          {"executable-deleted", source.executable_deleted},
          {"cgroup", source.cgroup}};
}

json to_json(const VmManifest& manifest) {
  json blocks = json::array();
  for (const RamBlock& block : manifest.blocks) {
    blocks.push_back({{"name", block.name},
                      {"bytes", block.length_bytes},
                      {"backing-page-bytes", block.backing_page_bytes}});
  }
  return {{"format", kFormatName},
          {"version", kManifestVersion},
          {"vm",
           {{"name", manifest.vm_name},
            {"uuid", manifest.vm_uuid},
            {"run-state", manifest.run_state == GuestRunState::running ? "running" : "paused"}}},
          {"attempt", {{"id", manifest.attempt_id}, {"epoch", manifest.epoch}}},
          {"source", source_to_json(manifest)},
          {"qemu-version", manifest.qemu_version},
          {"machine-type", manifest.machine_type},
          {"machine", manifest.machine},
          {"page-bytes", manifest.page_bytes},
          {"blocks", std::move(blocks)}};
}

Result<void> vm_from_json(const json& object, VmManifest& manifest) {
  Members vm(object, "vm");
  manifest.vm_name = vm.text("name", 1, kNameBytesMax);
  manifest.vm_uuid = vm.text("uuid", kUuidBytes, kUuidBytes);
  const std::string state = vm.text("run-state", 1, kNameBytesMax);
  if (state != "running" && state != "paused")
    vm.wrong("run-state", "is neither running nor paused");
  manifest.run_state = state == "paused" ? GuestRunState::paused : GuestRunState::running;
  return vm.finish();
}

Result<void> attempt_from_json(const json& object, VmManifest& manifest) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-";
  Members attempt(object, "attempt");
  manifest.attempt_id = attempt.text("id", 1, kAttemptBytesMax);
  if (manifest.attempt_id.find_first_not_of(kAllowed) != std::string::npos) {
    attempt.wrong("id", "has other characters than letters, digits and dashes");
  }
  manifest.epoch = attempt.number("epoch", 0, kNumberMax);
  return attempt.finish();
}

Result<void> source_from_json(const json& object, VmManifest& manifest) {
  Members source(object, "source");
  QemuProcess& process = manifest.source;
  manifest.source_host = source.text("host", 1, kHostNameBytesMax);
  manifest.source_boot_id = source.text("boot-id", kUuidBytes, kUuidBytes);
  process.identity.pid = static_cast<int>(source.number("pid", 1, kPidMax));
  process.identity.start_ticks = source.number("start-ticks", 0, kNumberMax);
  process.argv = source.texts("argv", 1, kArgumentsMax, kArgumentBytesMax);
  process.working_directory = source.text("working-directory", 1, kPathBytesMax);
  process.uid = static_cast<std::uint32_t>(source.number("uid", 0, kIdMax));
  process.gid = static_cast<std::uint32_t>(source.number("gid", 0, kIdMax));
  process.groups = source.ids("groups", kGroupsMax);
  process.executable = source.text("executable", 1, kPathBytesMax);
  process.executable_deleted = source.flag("executable-deleted");
  process.cgroup = source.text("cgroup", 0, kPathBytesMax);
  if (!process.executable.empty() && process.executable.front() != '/')
    source.wrong("executable", "is no absolute path");
  if (!process.working_directory.empty() && process.working_directory.front() != '/') {
    source.wrong("working-directory", "is no absolute path");
  }
  return source.finish();
}

Result<void> blocks_from_json(const json& list, VmManifest& manifest) {
  for (std::size_t i = 0; i < list.size(); ++i) {
    Members block(list[i], fmt::format("blocks[{}]", i));
    RamBlock read;
    read.name = block.text("name", 1, kBlockNameBytesMax);
    read.length_bytes = block.number("bytes", 1, kMemoryBytesMax);
    read.backing_page_bytes =
        block.number("backing-page-bytes", kPageSizeBytes, kBackingPageBytesMax);
    PF_TRY(block.finish());
    manifest.blocks.push_back(std::move(read));
  }
  if (manifest.blocks.empty()) return {};
  const auto layout = MemoryLayout::make(manifest.blocks);
  if (!layout) return with_context(layout.error(), "manifest member blocks");
  return {};
}

Result<VmManifest> from_json(const json& object) {
  VmManifest manifest;
  Members top(object, "");
  top.text("format", 0, kNameBytesMax);  // checked before
  top.number("version", 0, kNumberMax);
  const json& vm = top.object("vm");
  const json& attempt = top.object("attempt");
  const json& source = top.object("source");
  constexpr std::uint64_t kVersionMax = 1'000'000;
  manifest.qemu_version = static_cast<std::uint32_t>(top.number("qemu-version", 0, kVersionMax));
  manifest.machine_type = top.text("machine-type", 1, kNameBytesMax);
  manifest.machine = top.object("machine");
  manifest.page_bytes =
      static_cast<std::uint32_t>(top.number("page-bytes", kPageSizeBytes, kPageSizeBytes));
  const json& blocks = top.list("blocks", 0, kBlocksMax);
  PF_TRY(top.finish());
  PF_TRY(vm_from_json(vm, manifest));
  PF_TRY(attempt_from_json(attempt, manifest));
  PF_TRY(source_from_json(source, manifest));
  PF_TRY(blocks_from_json(blocks, manifest));
  return manifest;
}

// The object's line with its newline, once the checksum below it was right.
Result<std::string_view> checked_line(std::string_view text) {
  if (text.size() > kManifestBytesMax) {
    return fail(Errc::invalid,
                fmt::format("manifest has {} bytes, at most {}", text.size(), kManifestBytesMax));
  }
  const auto newline = text.find('\n');
  if (newline == std::string_view::npos || text.size() - (newline + 1) != kChecksumLineBytes ||
      text.back() != '\n') {
    return fail(
        Errc::corrupt,
        fmt::format("manifest of {} bytes is truncated or has more than two lines", text.size()));
  }
  const std::string_view line = text.substr(0, newline + 1);
  const std::string_view digits = text.substr(newline + 1 + kChecksumWord.size(), kChecksumDigits);
  std::uint32_t stored = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), stored, 16);
  if (text.substr(newline + 1, kChecksumWord.size()) != kChecksumWord || error != std::errc() ||
      end != digits.data() + digits.size()) {
    return fail(Errc::corrupt, "manifest's second line is no checksum");
  }
  const std::uint32_t actual = checksum_of(line);
  if (actual != stored) {
    return fail(Errc::corrupt,
                fmt::format("manifest's checksum is {:08x}, its text has {:08x}", stored, actual));
  }
  return line;
}

// Nesting is bounded before parsing: what is built from JSON is also taken apart by recursion.
Result<void> check_nesting(std::string_view text) {
  std::size_t depth = 0;
  bool in_text = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_text && c == '\\') {
      ++i;
    } else if (c == '"') {
      in_text = !in_text;
    } else if (!in_text && (c == '{' || c == '[')) {
      if (++depth > kNestingMax)
        return fail(Errc::invalid, fmt::format("manifest is nested deeper than {}", kNestingMax));
    } else if (!in_text && (c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
  return {};
}

}  // namespace

Result<std::string> encode_manifest(const VmManifest& manifest) {
  std::string text;
  try {
    text = to_json(manifest).dump() + "\n";
  } catch (const json::exception& e) {
    return fail(
        Errc::invalid,
        fmt::format("manifest of {} cannot be written: {} (paths and arguments must be UTF-8)",
                    manifest.vm_name, e.what()));
  }
  text += fmt::format("{}{:08x}\n", kChecksumWord, checksum_of(text));
  const auto check = decode_manifest(text);  // what would be refused later is not written at all
  if (!check) return fail(Errc::invalid, check.error().message);
  return text;
}

Result<VmManifest> decode_manifest(std::string_view text) {
  PF_ASSIGN(const std::string_view line, checked_line(text));
  PF_TRY(check_nesting(line));
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return fail(Errc::corrupt, "manifest's first line is no JSON object");
  const auto format = object.find("format");
  if (format == object.end() || *format != kFormatName) {
    return fail(Errc::version,
                fmt::format("this is no manifest: member format is not {}", kFormatName));
  }
  const auto version = object.find("version");
  if (version == object.end() || *version != kManifestVersion) {
    return fail(Errc::version,
                fmt::format("manifest has version {}, this program reads {}",
                            version == object.end() ? "none" : version->dump().substr(0, 20),
                            kManifestVersion));
  }
  return from_json(object);
}

}  // namespace pageferry
