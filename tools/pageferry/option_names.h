// The words for choices, as they stand on the command line and in the messages to an agent.
//
// Thread rule: pure functions.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pager/prefetch_order.h"
#include "vmstate/qemu_placement.h"

namespace pageferry {

inline constexpr std::array<std::pair<std::string_view, PrefetchOrder>, 4> kPrefetchOrderNames{
    {{"none", PrefetchOrder::none},
     {"linear", PrefetchOrder::linear},
     {"hot", PrefetchOrder::hot},
     {"recorded", PrefetchOrder::recorded}}};
inline constexpr std::array<std::pair<std::string_view, PagePlacement>, 3> kPlacementNames{
    {{"auto", PagePlacement::automatic},
     {"direct", PagePlacement::direct},
     {"stream", PagePlacement::stream}}};

// Precondition: the table has the value.
template <typename Names, typename Value>
constexpr std::string_view name_of(const Names& names, Value value) {
  for (const auto& [name, named] : names) {
    if (named == value) return name;
  }
  return {};
}

// The words alone, in the table's order.
template <typename Names>
std::vector<std::string> words_of(const Names& names) {
  std::vector<std::string> words;
  for (const auto& [name, named] : names) words.emplace_back(name);
  return words;
}

// nullopt when the table has no such word.
template <typename Names>
constexpr auto find_named(const Names& names, std::string_view word)
    -> std::optional<typename Names::value_type::second_type> {
  for (const auto& [name, named] : names) {
    if (name == word) return named;
  }
  return std::nullopt;
}

}  // namespace pageferry
