// --base: which image on the store the new one leaves pages in. Chosen and linked before the VMM is asked, since it can only be
// asked for an image that can be used; taken only if the VMM then proves what was written since. Else everything is written, and
// one line says why: a move must not fail for want of a base.
#include <fmt/format.h>

#include "tools/pageferry/source_migration.h"
#include "tools/pageferry/store_step.h"

namespace pageferry {

void SourceMigration::go_without_base(const std::string& why) {
  base_.reset();
  reporter_.warning(fmt::format("every page is written, without a base: {}", why));
}

Result<void> SourceMigration::find_base() {
  if (options_.base.kind == BaseChoice::Kind::none) return {};
  PF_ASSIGN(OwnershipSnapshot snapshot, hand_off_->read());
  auto found = run_store_step<std::shared_ptr<BaseImage>>(
      "opening the base", store_bounds(),
      [store = options_.store, vm = name(), snapshot = std::move(snapshot), choice = options_.base,
       since = vm_->facts().tracked_since_attempt, attempt = attempt_,
       stop = store_stop_]() -> Result<std::shared_ptr<BaseImage>> {
        PF_ASSIGN(const VmDirectory directory,
                  VmDirectory::open(store, vm, VmDirectory::IfMissing::refuse));
        PF_ASSIGN(BaseImage base, find_base_image(directory, snapshot, choice, since,
                                                  {stop.get(), Deadline::never()}));
        PF_TRY(link_bases(directory, base, *attempt));
        return std::make_shared<BaseImage>(std::move(base));
      });
  if (found) {
    base_ = std::move(*found);
    return common_.fail_points.hit("source.base-linked");
  }
  if (found.error().code == Errc::canceled) return tl::make_unexpected(std::move(found).error());
  go_without_base(found.error().message);
  return {};
}

// The capture has begun: the VMM has said whether it can.
Result<void> SourceMigration::settle_base() {
  if (!base_) return {};
  if (capture_->base_in_use()) {
    PF_TRY(writer_->use_base(base_->image, base_->plan));
    base_->image = PageFileImage();  // its map is as large as the new one's
    return {};
  }
  const std::string attempt = base_->attempt;
  PF_TRY(run_store_step<void>("unlinking the base", store_bounds(),
                              [base = base_, attempt = attempt_]() -> Result<void> {
                                unlink_bases(base->plan, *attempt);
                                return {};
                              }));
  go_without_base(fmt::format(
      "the VMM does not prove what was written since {}, or its memory is laid out otherwise",
      attempt));
  return {};
}

}  // namespace pageferry
