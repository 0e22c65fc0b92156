// The page tables are looked at where we may: they spare reading what an earlier pager has brought, and backing pages larger than a page
// cannot be told without them. Not being allowed to is no error for ordinary pages.
#include "vmstate/hook_restore.h"

#include <fmt/format.h>

#include <utility>

#include "transport/os/page_tables.h"
#include "vmstate/qemu_process.h"

namespace pageferry {
namespace {

constexpr Seconds kResidentBound{30};
// After the resume the guest has the CPUs for itself for a moment.
constexpr Milliseconds kSettleTime{100};

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
  for (const HookSlot& slot : vm.slots) userfault.block_addresses.push_back(slot.host_address);
  if (auto tables = PageTables::open(vm.pid)) userfault.tables.emplace(std::move(*tables));
  userfault.process_fd = process_.get();
  userfault.connection_fd = client_->connection_fd();
  UserfaultPageInOptions options;
  options.page_in.order = order_;
  PF_ASSIGN(page_in_, UserfaultPageIn::make(std::move(userfault), vm.layout, supply, nullptr,
                                            options, clock_));
  page_in_->hold_prefetch();
  thread_ = std::thread(
      [this] { served_.emplace(page_in_->serve(stop_, [](const UserfaultPageInFigures&) {})); });
  return {};
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
