// Block by block into one buffer. Bits behind the end of a block are a mistake of the VMM's that would not show: they are ignored.
#include "pager/vmm_dirty_source.h"

#include "pager/page_words.h"

namespace pageferry {

Result<void> VmmDirtySource::fetch(DirtyBitmap& dirty) {
  for (std::size_t i = 0; i < layout().blocks().size(); ++i) {
    const RamBlock& block = layout().blocks()[i];
    words_.assign(words_for_pages(block.pages()), 0);
    PF_TRY(log_->fetch_and_rearm(i, words_));
    dirty.set_where({block.first_page, block.pages()}, words_);
  }
  return {};
}

}  // namespace pageferry
