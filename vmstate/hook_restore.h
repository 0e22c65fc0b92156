// HookRestore: the pager's side of a VMM with a hook that takes a guest, or whose guest still misses pages: UserfaultPageIn on a thread of
// its own, over the userfaultfd that the hook hands out.
//
//   serve()           pages may be asked for from here on; also where an earlier pager died
//   load_state()      only a VMM that has nothing loaded yet; a touch of guest memory waits for its page
//   resume()          the caller's running record is durable
//   begin_prefetch()  nothing is held back for the switch any more
//   finish()          until every page is there, and the hook agrees
//
// Pages that the VMM gives back meanwhile are made zero by the hook itself, in the VMM; nothing of them is kept here.
//
// Thread rule: calls from one thread; stats() and request_stop() from any. Lifetime: the supply outlives it. Destroying it unfinished
// leaves the guest waiting for the next one.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "pager/page_supply.h"
#include "pager/touch_record.h"
#include "pager/userfault_page_in.h"
#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/hook_client.h"
#include "vmstate/hook_state.h"
#include "vmstate/qemu_restore.h"

namespace pageferry {

class HookRestore {
 public:
  // `client`: a restorer's connection.
  HookRestore(std::unique_ptr<HookClient> client, PrefetchOrder order, const Clock& clock)
      : client_(std::move(client)),
        order_(order),
        clock_(clock),
        marks_(std::in_place, client_->vm().layout.pages()) {}
  ~HookRestore();
  HookRestore(const HookRestore&) = delete;
  HookRestore& operator=(const HookRestore&) = delete;

  const HookVm& vm() const { return client_->vm(); }

  // What PrefetchOrder::recorded follows, of a guest with these blocks; without it that order is as hot. Before serve().
  void follow(const TouchRecord& record) { recorded_ = record.runs(); }
  // Errors: invalid (the image has other blocks), gone, vmm. Called once.
  Result<void> serve(PageSupply& supply, Deadline deadline);
  // Errors: invalid (the state is of another machine), vmm (the VMM refused), gone.
  Result<void> load_state(const HookDeviceState& state, const std::string& attempt_id,
                          Deadline deadline);
  Result<void> resume(std::uint64_t epoch, Deadline deadline);
  void begin_prefetch();
  // Errors: corrupt/io (a page could not be proved: who waits for it waits), gone, canceled.
  Result<void> finish();
  // The order of first touches. After finish().
  const TouchRecord& touches() const;
  void request_stop() { stop_.cancel(); }
  RestoreStats stats() const;

 private:
  void share(const UserfaultPageInFigures& figures, Nanoseconds started_at);

  std::unique_ptr<HookClient> client_;
  const PrefetchOrder order_;
  std::vector<PageRun> recorded_;
  const Clock& clock_;
  std::optional<PageMarks> marks_;  // until serve()
  UniqueFd process_;
  CancelSignal stop_;
  std::optional<HookProgressWriter> shared_progress_;
  std::unique_ptr<UserfaultPageIn> page_in_;
  std::optional<Result<UserfaultPageIn::End>> served_;  // the thread's, read once it was joined
  std::thread thread_;                                  // last: it uses what stands above
};

}  // namespace pageferry
