// CheckedJson: a small file that people can read and nobody should trust: one JSON object on one line, and below it a line
// "crc32c XXXXXXXX" over the first with its newline. The manifest is one (docs/manifest-format.md), the memory map another
// (docs/memory-map-format.md).
//
// Decoding trusts nothing: size, checksum and nesting are checked before JSON is parsed, then format and version; JsonMembers then
// gives each member a type and a limit, and refuses what it was not asked for.
//
// Thread rule: pure functions; JsonMembers: one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

// Of numbers that name a user, a group or the like.
inline constexpr std::uint64_t kIdMax = std::numeric_limits<std::uint32_t>::max();

struct CheckedJsonFormat {
  std::string_view what;  // in messages
  std::string_view name;  // the member "format"
  std::uint32_t version = 0;
  std::size_t bytes_max = 0;  // of the whole text
};

// Adds "format" and "version" to an object and makes its text. invalid: a text in it is not UTF-8.
Result<std::string> encode_checked_json(nlohmann::json object, const CheckedJsonFormat& format);
// The object, "format" and "version" included. Errors: corrupt (checksum, truncated, no JSON), version (another format or version),
// invalid (too long, nested too deep).
Result<nlohmann::json> decode_checked_json(std::string_view text, const CheckedJsonFormat& format);

// Reads the members of one object. The first thing wrong is kept; what is read after it is empty and not used. Lifetime: object and
// format outlive it.
class JsonMembers {
 public:
  // `name`: of the object inside the whole one; "" is the whole, whose "format" and "version" are known.
  JsonMembers(const nlohmann::json& object, const CheckedJsonFormat& format, std::string name);

  std::string text(const char* key, std::size_t bytes_min, std::size_t bytes_max);
  std::uint64_t number(const char* key, std::uint64_t minimum, std::uint64_t maximum);
  bool flag(const char* key);
  const nlohmann::json& object(const char* key);
  const nlohmann::json& list(const char* key, std::size_t entries_min, std::size_t entries_max);
  std::vector<std::string> texts(const char* key, std::size_t entries_min, std::size_t entries_max,
                                 std::size_t bytes_max);
  std::vector<std::uint32_t> ids(const char* key, std::size_t entries_max);

  void wrong(const std::string& key, std::string_view why);
  // All members were asked for, and all were right. invalid: names member, value and limit.
  Result<void> finish();

 private:
  const nlohmann::json* find(const char* key);
  std::uint64_t number_in(const nlohmann::json& value, const char* key, std::uint64_t minimum,
                          std::uint64_t maximum);

  const nlohmann::json& object_;
  const CheckedJsonFormat& format_;
  const std::string name_;
  std::set<std::string> known_;
  std::string error_;
};

}  // namespace pageferry
