// Reading fields of QMP answers and events: a field that is missing or of another type is an empty
// or zero value, never an exception. Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace pageferry {

inline std::string text_field(const nlohmann::json& object, const char* name) {
  if (!object.is_object() || !object.contains(name)) return {};
  const nlohmann::json& field = object[name];
  return field.is_string() ? field.get<std::string>() : std::string();
}

// Numbers that are not negative.
inline std::uint64_t number_field(const nlohmann::json& object, const char* name) {
  if (!object.is_object() || !object.contains(name)) return 0;
  const nlohmann::json& field = object[name];
  return field.is_number_unsigned() ? field.get<std::uint64_t>() : 0;
}

// The object under `name`, or an empty one.
inline nlohmann::json object_field(const nlohmann::json& object, const char* name) {
  if (!object.is_object() || !object.contains(name)) return nlohmann::json::object();
  const nlohmann::json& field = object[name];
  return field.is_object() ? field : nlohmann::json::object();
}

}  // namespace pageferry
