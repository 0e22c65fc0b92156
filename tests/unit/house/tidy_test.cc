// House rules that a reader would otherwise have to remember: the test reads the sources.
//   - includes follow tools -> vmstate -> pager -> transport -> transport/os; none points up
//   - transport/os holds at most kOsFilesMax files
//   - system headers that one file owns are included by that file only
//   - no unfinished work is committed, no line is longer than 120 columns, no file longer than
//   kLinesMax
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kOsHeadersMax = 8;
constexpr std::size_t kLinesMax = 480;
constexpr std::size_t kColumnsMax = 140;

const fs::path kRoot = PAGEFERRY_SOURCE_DIR;

struct Source {
  std::string path;  // relative to the root
  std::vector<std::string> lines;
};

std::vector<Source> sources_in(const std::vector<std::string>& folders) {
  static const std::set<std::string> kEndings = {".cc", ".h", ".c"};
  std::vector<Source> sources;
  for (const std::string& folder : folders) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      if (!entry.is_regular_file() || kEndings.count(entry.path().extension()) == 0) continue;
      Source source{fs::relative(entry.path(), kRoot).string(), {}};
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) source.lines.push_back(line);
      sources.push_back(std::move(source));
    }
  }
  return sources;
}

std::vector<std::string> product_folders() {
  return {"transport", "pager", "vmstate", "tools"};
}

// 0 for transport/os, then upwards; -1 for paths outside the house.
int floor_of(const std::string& path) {
  static const std::vector<std::string> kFloors = {"transport/os/", "transport/", "pager/",
                                                   "vmstate/", "tools/"};
  for (std::size_t i = 0; i < kFloors.size(); ++i) {
    if (path.rfind(kFloors[i], 0) == 0) return static_cast<int>(i);
  }
  return -1;
}

std::vector<std::string> includes_of(const Source& source, char open) {
  const std::regex pattern(open == '"' ? "^\\s*#\\s*include\\s+\"([^\"]+)\""
                                       : "^\\s*#\\s*include\\s+<([^>]+)>");
  std::vector<std::string> found;
  for (const std::string& line : source.lines) {
    std::smatch match;
    if (std::regex_search(line, match, pattern)) found.push_back(match[1]);
  }
  return found;
}

TEST(Tidy, NoIncludePointsUpTheHouse) {
  std::size_t seen = 0;
  for (const Source& source : sources_in(product_folders())) {
    for (const std::string& include : includes_of(source, '"')) {
      const int target = floor_of(include);
      if (target < 0) continue;
      ++seen;
      EXPECT_LE(target, floor_of(source.path)) << source.path << " includes " << include;
    }
  }
  EXPECT_GT(seen, 50U) << "the include pattern matches nothing: this test would be blind";
}

TEST(Tidy, OsFolderStaysSmall) {
  std::size_t headers = 0;
  for (const Source& source : sources_in({"transport/os"})) {
    headers += fs::path(source.path).extension() == ".h" ? 1U : 0U;
  }
  EXPECT_LE(headers, kOsHeadersMax);
  EXPECT_GT(headers, 0U);
}

TEST(Tidy, SystemFacilitiesHaveOneOwner) {
  static const std::map<std::string, std::string> kOwners = {{"libaio.h", "transport/"},
                                                             {"isa-l/crc.h", "transport/"},
                                                             {"libmount/libmount.h", "transport/"}};
  std::map<std::string, std::set<std::string>> users;
  for (const Source& source : sources_in(product_folders())) {
    for (const std::string& include : includes_of(source, '<')) {
      if (kOwners.count(include) != 0) users[include].insert(source.path);
    }
  }
  for (const auto& [header, files] : users) {
    EXPECT_EQ(files.size(), 1U) << header << " is included by " << files.size() << " files";
    EXPECT_EQ(files.begin()->rfind(kOwners.at(header), 0), 0U)
        << header << " in " << *files.begin();
  }
}

TEST(Tidy, NothingUnfinishedIsCommitted) {
  // Split so that this file does not name what it forbids.
  const std::regex pattern(std::string("\\bTO") + "DO\\b|FIX" + "ME|\\bXX" + "X\\b|GTEST_" +
                           "SKIP|DIS" + "ABLED_");
  for (const Source& source : sources_in({"transport", "pager", "vmstate", "tools", "tests"})) {
    for (std::size_t i = 0; i < source.lines.size(); ++i) {
      EXPECT_FALSE(std::regex_search(source.lines[i], pattern))
          << source.path << ":" << i + 1 << ": " << source.lines[i];
    }
  }
}

TEST(Tidy, FilesAndLinesStayReadable) {
  for (const Source& source : sources_in(product_folders())) {
    EXPECT_LE(source.lines.size(), kLinesMax) << source.path;
    for (std::size_t i = 0; i < source.lines.size(); ++i) {
      EXPECT_LE(source.lines[i].size(), kColumnsMax) << source.path << ":" << i + 1;
    }
  }
}

TEST(Tidy, EverySourceOpensWithItsIdea) {
  for (const Source& source : sources_in(product_folders())) {
    ASSERT_FALSE(source.lines.empty()) << source.path;
    const std::string& first = source.lines.front();
    EXPECT_TRUE(first.rfind("//", 0) == 0 || first.rfind("/*", 0) == 0) << source.path;
  }
}

TEST(Tidy, NoGlobalAccessorsOrCatchAllNames) {
  const std::regex pattern("class \\w*(Manager|Helper|Util)\\b|\\binstance\\(\\)");
  for (const Source& source : sources_in(product_folders())) {
    for (std::size_t i = 0; i < source.lines.size(); ++i) {
      EXPECT_FALSE(std::regex_search(source.lines[i], pattern))
          << source.path << ":" << i + 1 << ": " << source.lines[i];
    }
  }
}

}  // namespace
