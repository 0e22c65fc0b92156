// The guest runs here and pages of it are missing: bringing them, alone or beside a tool that moves the guest on.
#include <fmt/format.h>

#include "tools/pageferry/option_names.h"
#include "tools/pageferry/recovery.h"

namespace pageferry {

ExitCode Recovery::serve_only() {
  if (!open()) return ExitCode::refused;
  auto verdict = serve_the_named();
  if (verdict) return verdict->code;
  reporter_.error(verdict.error());
  return verdict.error().code == Errc::corrupt ? ExitCode::state_lost : ExitCode::recoverable;
}

Result<Recovery::Verdict> Recovery::serve_the_named() {
  PF_ASSIGN(const OwnershipSnapshot before, hand_off_->read());
  PF_ASSIGN(std::vector<VmmLook> looks, look_around(before));
  PF_ASSIGN(const OwnershipSnapshot snapshot, hand_off_->read());
  for (VmmLook& look : looks) {
    if (look.hook && look.hook->state == HookState::restoring) return serve(look, snapshot);
  }
  return refuse(ExitCode::done, "no guest here waits for pages");
}

// The guest runs here (or will in a moment): pages may always be served to the VMM of the running
// epoch.
Result<Recovery::Verdict> Recovery::serve(VmmLook& vmm, const OwnershipSnapshot& snapshot) {
  const auto named = snapshot.empty() ? std::nullopt : vmm_of_highest(snapshot, hand_off_->host());
  if (!named || vmm.view.process != named) {
    return refuse(ExitCode::done, "the guest runs here and was never handed over");
  }
  const Epoch epoch = snapshot.highest();
  result_["destination"] = vmm.where();
  result_["claim"] = {{"epoch", raw(epoch)}, {"owner", hand_off_->host().name}};
  if (vmm.waits_for_pages()) {
    auto attached = attach(vmm, image_for(snapshot, epoch));
    // Whoever serves holds no lock that a `receive` asks for.
    if (!attached && vmm.hook && attached.error().code == Errc::busy) {
      return refuse(ExitCode::refused, attached.error().message);
    }
    PF_TRY(std::move(attached));
  }
  early_.reset();  // it has brought what was needed to get here; the restore goes on
  if (hook_restore_) when_serving_(epoch);
  PF_TRY(serve_to_the_end(vmm));
  if (auto freed = free_image(snapshot); !freed) {
    reporter_.warning(image_stays_text(freed.error()));
  }
  return Verdict{Round::finished, ExitCode::done};
}

Result<void> Recovery::serve_to_the_end(VmmLook& vmm) {
  if (!restore_ && !hook_restore_) return {};
  if (restore_) restore_->use_monitor(*vmm.qmp);
  PF_TRY(restore_ ? restore_->finish() : hook_restore_->finish());
  const RestoreStats stats = restore_ ? restore_->stats() : hook_restore_->stats();
  result_["faults"] = {{"count", stats.faults}};
  if (stats.placement != PagePlacement::automatic) {
    result_["placement"] = name_of(kPlacementNames, stats.placement);
  }
  restore_.reset();
  hook_restore_.reset();
  return {};
}

// The guest runs here and has every page.
Result<void> Recovery::free_image(const OwnershipSnapshot& snapshot) {
  if (!snapshot.top().resident) PF_TRY(hand_off_->resident(snapshot.highest()));
  reader_.reset();
  if (command_.destination.keep == KeepImage::yes) {
    const auto kept = image_for(snapshot, snapshot.highest()).image;
    return kept ? hand_off_->remove_attempts_superseded_by(kept->attempt) : Result<void>();
  }
  return hand_off_->remove_older_attempts(snapshot.highest());
}

}  // namespace pageferry
