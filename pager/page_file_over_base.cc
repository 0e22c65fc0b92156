// The beginning of a page file over a base: its header names the bases, and its map leads to them for every page, until the page is put.
#include <fmt/format.h>

#include "pager/page_file_writer.h"

namespace pageferry {

// The map is written now, as a whole: what the passes change in it is little.
Result<void> PageFileWriter::use_base(const PageFileImage& base, const BasePlan& plan) {
  PF_TRY(check_page(PageIndex{0}));
  if (state_ != State::brownout || version_max_ != 0 || !header_.bases.empty()) {
    return fail(Errc::invalid, fmt::format("{}: use_base() out of turn", file_->name()));
  }
  if (base.layout != layout_) {
    return fail(
        Errc::invalid,
        fmt::format("{}: the base holds {} bytes of memory in {} RAM blocks, this guest has {} "
                    "in {}, or they differ otherwise",
                    file_->name(), base.layout.bytes(), base.layout.blocks().size(),
                    layout_.bytes(), layout_.blocks().size()));
  }
  header_.bases = plan.bases;
  PF_ASSIGN(const FileBlock head,
            queue_->stage(WriteStream::append, kHeaderOffset, WriteQueue::Place::rewritten));
  encode_header(header_, head);
  for (std::uint64_t page = 0; page < layout_.pages(); ++page) {
    const MapEntry entry = plan.carried(base.map.get(PageIndex{page}));
    if (!entry.is_zero()) map_.set(PageIndex{page}, entry);
  }
  stored_pages_ = plan.pages;
  stored_base_pages_ = plan.pages;
  PF_TRY(write_map_blocks(0, map_.blocks(), 0));
  PF_TRY(queue_->drain());
  publish();
  return {};
}

}  // namespace pageferry
