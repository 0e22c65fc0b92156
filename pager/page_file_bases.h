// PageFileBases: the files that a page file has left pages in (docs/page-file-format.md, "Bases"), open and checked. They lie beside
// it, each under a name that its commit id gives; whoever knows the directory opens them.
//
// What is checked is that each is the file that was meant: committed, with that commit id and size, and for the same guest's
// layout. Its pages are proved as all pages are, by the checksum in the map of the file that needs them.
//
// Thread rule: one thread, that of the files.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pager/page_file_format.h"
#include "transport/os/error.h"
#include "transport/storage_file.h"
#include "transport/storage_wait.h"

namespace pageferry {

// Opens, for reading, the file of that name beside the page file. Errors: not_found, invalid (no regular file), the store's.
using BaseFileOpener =
    std::function<Result<std::unique_ptr<StorageFile>>(const std::string& file_name)>;

class PageFileBases {
 public:
  PageFileBases() = default;
  // All bases of the header, none for a file without. Errors, one line each that names the base: the opener's (missing: not_found); invalid
  // (no opener); corrupt (another commit id, another size, another layout, not committed); the format's; those of the bounds.
  static Result<PageFileBases> open(const PageFileHeader& header, const BaseFileOpener& opener,
                                    const WaitBounds& bounds);

  std::size_t count() const { return files_.size(); }
  // By the number in map entries. Precondition: 1 <= number <= count().
  StorageFile& file(std::size_t number) const { return *files_[number - 1]; }

 private:
  std::vector<std::unique_ptr<StorageFile>> files_;
};

}  // namespace pageferry
