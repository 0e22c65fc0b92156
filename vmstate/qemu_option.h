// QemuOption: the value of one QEMU command line option as members that can be read and changed:
// "socket,id=a,path=/x,server=on" or the JSON form {"driver":"socket",...}. What is not changed is
// written back as it was, member for member.
//
// Knows the grammar (commas doubled inside values, a first value without a key, nested names with
// dots), no option.
//
// Thread rule: value.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

class QemuOption {
 public:
  // `implied_key` is the name of a first member that is written without one ("backend" for
  // -chardev); "" = there is none. invalid for text that begins with '{' and is no JSON object.
  static Result<QemuOption> parse(std::string_view text, std::string implied_key);

  // The member's text; "on" for a flag without a value ("server"). Nested JSON members by dots
  // ("addr.path"); numbers and booleans as QEMU's text form (true = "on").
  std::optional<std::string> get(std::string_view key) const;
  std::string get_or(std::string_view key, std::string_view otherwise) const;
  bool has(std::string_view key) const { return get(key).has_value(); }
  // on, yes, true, y, or a bare flag.
  bool is_on(std::string_view key) const;

  // Replaces the first such member and drops the others, or appends. In the JSON form "on" and
  // "off" become booleans.
  void set(std::string_view key, std::string_view value);
  // Drops every such member; false if there was none.
  bool erase(std::string_view key);
  // All top-level names, in order, repeated ones repeated; nested JSON with dots.
  std::vector<std::string> keys() const;
  bool empty() const;

  std::string text() const;

 private:
  struct Member {
    std::string key;
    std::optional<std::string> value;  // nullopt: a flag
  };
  std::string implied_key_;
  bool first_is_bare_ = false;  // the first member was written without its key
  std::vector<Member> members_;
  std::optional<nlohmann::ordered_json> json_;  // then members_ is unused
};

// Commas doubled, for a value inside an option.
std::string with_doubled_commas(std::string_view value);

}  // namespace pageferry
