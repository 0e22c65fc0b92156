// Two spellings behind one face. The key=value form is kept as a list, not a map: QEMU gives
// repeated keys a meaning (hostfwd), and a list can be written back in its own order. The JSON form
// keeps its order for the same reason.
#include "vmstate/qemu_option.h"

#include <fmt/format.h>

#include <algorithm>

namespace pageferry {
namespace {

using Json = nlohmann::ordered_json;

// Up to the next single comma, doubled ones made single; moves `at` behind that comma.
std::string take_value(std::string_view text, std::size_t& at) {
  std::string value;
  while (at < text.size()) {
    if (text[at] == ',') {
      if (at + 1 >= text.size() || text[at + 1] != ',') break;
      ++at;
    }
    value += text[at++];
  }
  ++at;
  return value;
}

std::string text_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
  return value.dump();
}

// The parent object of a dotted key and the key's last part; nullptr when the way does not exist.
template <typename AnyJson>
AnyJson* parent_of(AnyJson& root, std::string_view& key) {
  AnyJson* at = &root;
  for (auto dot = key.find('.'); dot != std::string_view::npos; dot = key.find('.')) {
    const auto next = at->find(std::string(key.substr(0, dot)));
    if (next == at->end() || !next->is_object()) return nullptr;
    at = &*next;
    key.remove_prefix(dot + 1);
  }
  return at;
}

void collect_keys(const Json& object, const std::string& prefix, std::vector<std::string>& keys) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      collect_keys(value, prefix + key + ".", keys);
    } else {
      keys.push_back(prefix + key);
    }
  }
}

}  // namespace

Result<QemuOption> QemuOption::parse(std::string_view text, std::string implied_key) {
  QemuOption option;
  option.implied_key_ = std::move(implied_key);
  if (!text.empty() && text.front() == '{') {
    option.json_ = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!option.json_->is_object()) {
      return fail(Errc::invalid,
                  fmt::format("\"{}\" begins like JSON but is none", text.substr(0, 100)));
    }
    return option;
  }
  for (std::size_t at = 0; at < text.size();) {
    // A key has no comma; whatever comes before '=' or the next comma is one.
    const auto stop = std::min(text.find_first_of("=,", at), text.size());
    const bool has_value = stop < text.size() && text[stop] == '=';
    if (!has_value && option.members_.empty() && !option.implied_key_.empty()) {
      option.members_.push_back({option.implied_key_, take_value(text, at)});
      option.first_is_bare_ = true;
    } else if (has_value) {
      const std::string key(text.substr(at, stop - at));
      at = stop + 1;
      option.members_.push_back({key, take_value(text, at)});
    } else {
      option.members_.push_back({take_value(text, at), std::nullopt});
    }
  }
  return option;
}

std::optional<std::string> QemuOption::get(std::string_view key) const {
  if (json_) {
    const Json* parent = parent_of(*json_, key);
    if (parent == nullptr) return std::nullopt;
    const auto value = parent->find(std::string(key));
    if (value == parent->end()) return std::nullopt;
    return text_of(*value);
  }
  // As in QEMU the last one counts.
  for (auto member = members_.rbegin(); member != members_.rend(); ++member) {
    if (member->key == key) return member->value ? *member->value : "on";
  }
  return std::nullopt;
}

std::string QemuOption::get_or(std::string_view key, std::string_view otherwise) const {
  auto value = get(key);
  return value ? std::move(*value) : std::string(otherwise);
}

bool QemuOption::is_on(std::string_view key) const {
  const auto value = get(key);
  return value && (*value == "on" || *value == "yes" || *value == "true" || *value == "y");
}

void QemuOption::set(std::string_view key, std::string_view value) {
  if (json_) {
    Json* at = &*json_;
    for (auto dot = key.find('.'); dot != std::string_view::npos; dot = key.find('.')) {
      at = &(*at)[std::string(key.substr(0, dot))];
      key.remove_prefix(dot + 1);
    }
    Json& member = (*at)[std::string(key)];
    if (value == "on" || value == "off") {
      member = value == "on";
    } else {
      member = value;
    }
    return;
  }
  const auto same = [key](const Member& member) { return member.key == key; };
  const auto first = std::find_if(members_.begin(), members_.end(), same);
  if (first == members_.end()) {
    members_.push_back({std::string(key), std::string(value)});
    return;
  }
  first->value = value;
  members_.erase(std::remove_if(first + 1, members_.end(), same), members_.end());
}

bool QemuOption::erase(std::string_view key) {
  if (json_) {
    Json* parent = parent_of(*json_, key);
    return parent != nullptr && parent->erase(std::string(key)) > 0;
  }
  const auto before = members_.size();
  members_.erase(std::remove_if(members_.begin(), members_.end(),
                                [key](const Member& member) { return member.key == key; }),
                 members_.end());
  return members_.size() != before;
}

std::vector<std::string> QemuOption::keys() const {
  std::vector<std::string> keys;
  if (json_) {
    collect_keys(*json_, "", keys);
  } else {
    for (const Member& member : members_) keys.push_back(member.key);
  }
  return keys;
}

bool QemuOption::empty() const {
  return json_ ? json_->empty() : members_.empty();
}

std::string QemuOption::text() const {
  if (json_) return json_->dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string text;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const Member& member = members_[i];
    if (i > 0) text += ',';
    const bool bare = i == 0 && first_is_bare_ && member.key == implied_key_ && member.value &&
                      member.value->find('=') == std::string::npos;
    if (!bare) text += member.value ? member.key + "=" : with_doubled_commas(member.key);
    if (member.value) text += with_doubled_commas(*member.value);
  }
  return text;
}

std::string with_doubled_commas(std::string_view value) {
  std::string text;
  for (const char c : value) {
    text += c;
    if (c == ',') text += c;
  }
  return text;
}

}  // namespace pageferry
