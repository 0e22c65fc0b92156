// A command line for tests, written as people write one.
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace pageferry::testing_support {

inline std::vector<std::string> words_of(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

}  // namespace pageferry::testing_support
