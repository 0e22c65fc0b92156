// The page tables are looked at where they can say something: they spare reading what an earlier pager has brought, and backing pages
// larger than a page cannot be told without them. A VMM that nobody has brought a page to yet is not looked at in vain, in the middle of
// the guest's silence: 8 ms for 8 GiB. Not being allowed to look is no error for ordinary pages.
#include "vmstate/hook_restore.h"

#include <fmt/format.h>
#include <unistd.h>

#include <utility>

#include "transport/os/page_tables.h"
#include "vmstate/qemu_process.h"

namespace pageferry {
namespace {

constexpr Seconds kResidentBound{30};
constexpr Milliseconds kTellInterval{250};
// After the resume the guest has the CPUs for itself for a moment.
constexpr Milliseconds kSettleTime{100};

bool may_have_pages(const HookVm& vm) {
  return vm.state != HookState::incoming || !vm.attempt_id.empty();
}

Placing placing_of(const HookSlot& slot, hook_protocol::PagePlacing placing) {
  if (placing == hook_protocol::PagePlacing::plain) return Placing::plain;
  return slot.memory.valid() ? Placing::write_protected_with_zeros : Placing::write_protected;
}

}  // namespace

HookRestore::~HookRestore() {
  stop_.cancel();
  if (thread_.joinable()) thread_.join();
}

Result<void> HookRestore::serve(PageSupply& supply, Deadline deadline) {
  PF_CHECK(!page_in_);
  const HookVm& vm = client_->vm();
  PF_TRY(vm.layout.check_same_blocks(supply.layout()));
  PF_ASSIGN(const ProcessIdentity identity, identify_process(vm.pid));
  PF_ASSIGN(process_, open_pidfd(identity));
  UserfaultVmm userfault;
  PF_ASSIGN(userfault.userfault, client_->take_userfault(deadline));
  for (const HookSlot& slot : vm.slots) {
    userfault.block_addresses.push_back(slot.host_address);
    userfault.placing.push_back(placing_of(slot, vm.placing));
  }
  if (may_have_pages(vm) || vm.layout.has_large_pages()) {
    if (auto tables = PageTables::open(vm.pid)) userfault.tables.emplace(std::move(*tables));
  }
  userfault.marks = std::exchange(marks_, std::nullopt);
  userfault.process_fd = process_.get();
  userfault.connection_fd = client_->connection_fd();
  UserfaultPageInOptions options;
  options.tell_interval = kTellInterval;
  options.page_in.order = order_;
  options.page_in.recorded = std::move(recorded_);
  PF_ASSIGN(page_in_, UserfaultPageIn::make(std::move(userfault), vm.layout, supply, nullptr,
                                            options, clock_));
  page_in_->hold_prefetch();
  // For people who look on; nothing depends on it.
  auto page = HookProgressWriter::make();
  if (page && client_->share_progress(*page, deadline)) shared_progress_.emplace(std::move(*page));
  thread_ = std::thread([this, started_at = clock_.now()] {
    served_.emplace(page_in_->serve(
        stop_, [&](const UserfaultPageInFigures& figures) { share(figures, started_at); }));
  });
  return {};
}

void HookRestore::share(const UserfaultPageInFigures& figures, Nanoseconds started_at) {
  if (!shared_progress_) return;
  HookProgress shared;
  const bool resident = figures.pages_there >= figures.pages_total;
  shared.phase = resident ? HookPhase::resident : HookPhase::restoring;
  shared.pager_pid = static_cast<std::uint64_t>(::getpid());
  shared.started_ns = static_cast<std::uint64_t>(started_at.count());
  shared.updated_ns = static_cast<std::uint64_t>(clock_.now().count());
  shared.pages_total = figures.pages_total;
  shared.pages_done = figures.pages_there;
  shared.pages_left = resident ? 0 : figures.pages_total - figures.pages_there;
  shared.bytes_moved = bytes_of_pages(figures.pages_demand + figures.pages_prefetched);
  shared.faults = figures.faults;
  shared.fault_p50_us = figures.fault_p50_us;
  shared.fault_p99_us = figures.fault_p99_us;
  shared.fault_max_us = figures.fault_max_us;
  shared.prefetched_pages = figures.pages_prefetched;
  shared.removed_pages = figures.pages_removed;
  shared_progress_->write(shared);
}

Result<void> HookRestore::load_state(const HookDeviceState& state, const std::string& attempt_id,
                                     Deadline deadline) {
  if (state.machine != client_->vm().machine) {
    return fail(Errc::invalid, fmt::format("the device state is of machine '{}', the VMM is '{}'",
                                           state.machine, client_->vm().machine));
  }
  return client_->load_state(state.state, attempt_id, deadline);
}

Result<void> HookRestore::resume(std::uint64_t epoch, Deadline deadline) {
  return client_->resume(epoch, deadline);
}

void HookRestore::begin_prefetch() {
  page_in_->release_prefetch(kSettleTime);
}

Result<void> HookRestore::finish() {
  PF_CHECK(page_in_ != nullptr);
  begin_prefetch();
  if (thread_.joinable()) thread_.join();
  PF_ASSIGN(const UserfaultPageIn::End end, *served_);
  if (end == UserfaultPageIn::End::vmm_ended) {
    return fail(Errc::gone, fmt::format("VMM {} has ended", client_->vm().pid));
  }
  return client_->resident(Deadline::after(clock_, kResidentBound));
}

const TouchRecord& HookRestore::touches() const {
  PF_CHECK(page_in_ != nullptr && served_.has_value());
  return page_in_->touches();
}

RestoreStats HookRestore::stats() const {
  RestoreStats now;
  now.placement = PagePlacement::direct;
  if (!page_in_) return now;
  const UserfaultPageInFigures figures = page_in_->figures();
  now.pages_total = figures.pages_total;
  now.pages_demand = figures.pages_demand;
  now.pages_prefetched = figures.pages_prefetched + figures.pages_found;
  now.pages_zero = figures.pages_zero;
  now.faults = figures.faults;
  now.faults_already_sent = figures.faults_already_sent;
  now.fault_p50_us = figures.fault_p50_us;
  now.fault_p99_us = figures.fault_p99_us;
  now.fault_max_us = figures.fault_max_us;
  return now;
}

}  // namespace pageferry
