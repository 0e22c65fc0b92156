// The brownout is decided here and not by PageOut::run_brownout(): a pass that finds mostly zero pages is much faster than the store, so
// the store's own speed (CaptureOptions::sink_bytes_per_s) says how long the rest takes; and the guest runs on, pass after pass, until the
// destination is ready.
#include "vmstate/hook_capture.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "transport/os/thread_priority.h"
#include "vmstate/hook_state.h"

namespace pageferry {
namespace {

constexpr Milliseconds kCaptureTellInterval{250};
constexpr Seconds kTellNotConvergingInterval{1};
// Between two passes over nearly nothing, while the destination gets ready.
constexpr int kIdleMs = 20;
// The same while the guest's own pages are still coming: each collection looks which are there.
constexpr int kIdleWhileMissingMs = 100;
constexpr Seconds kRequestBound{30};
constexpr Seconds kResumedBound{30};
constexpr int kLookIntervalMs = 10;

}  // namespace

Result<void> HookDirtySource::begin() {
  return client_.start_tracking(Deadline::after(clock_, kRequestBound), since_attempt_);
}

Result<void> HookDirtySource::fetch(DirtyBitmap& dirty) {
  return client_.collect_into(dirty, Deadline::after(clock_, kRequestBound));
}

Result<void> HookDirtySource::end() {
  return client_.stop_tracking(Deadline::after(clock_, kRequestBound));
}

HookCapture::HookCapture(HookClient& client, std::string socket_path, HookMemory& memory,
                         PageSink& sink, CaptureObserver& observer, CaptureOptions options)
    : client_(client),
      socket_path_(std::move(socket_path)),
      memory_(memory),
      sink_(sink),
      observer_(observer),
      options_(std::move(options)),
      source_(client),
      page_out_(*this, source_, sink, cancel_, clock_) {}

HookCapture::~HookCapture() {
  if (!commit_sent_) request_stop();
  join();
}

void HookCapture::join() {
  if (pass_thread_.joinable()) pass_thread_.join();
}

Result<void> HookCapture::start() {
  PF_TRY(sink_.begin(layout()));
  // For people who look on; nothing depends on it.
  auto page = HookProgressWriter::make();
  if (page && client_.share_progress(*page, Deadline::after(clock_, kRequestBound))) {
    shared_progress_.emplace(std::move(*page));
  }
  return start_tracking();
}

// It is the hook that names every page once: of a guest that misses pages, each when it has come. What the hook calls the base is the end
// of its directory's name.
Result<void> HookCapture::start_tracking() {
  const std::string& known = client_.vm().tracked_since_attempt;
  const std::string& base = options_.base_attempt;
  const bool same_attempt = !known.empty() && (base == known || base.ends_with("." + known));
  if (same_attempt && options_.base_layout == layout()) {
    source_.begin_from(known);
    auto started = source_.start(PagesAtStart::not_written);
    base_in_use_ = started.has_value();
    if (started || started.error().code != Errc::not_found) return started;
    source_.begin_from("");
  }
  return source_.start(PagesAtStart::not_written);
}

void HookCapture::describe(VmManifest& manifest) const {
  manifest.blocks = layout().blocks();
}

std::vector<std::byte> HookCapture::encode_state() const {
  if (state_complete_at_ == 0) return {};
  return encode_hook_state(client_.vm().machine, state_);
}

Result<std::uint64_t> HookCapture::put(PageRun run, PageSink& sink) {
  PF_ASSIGN(const std::uint64_t pages, memory_.put(run, sink));
  pages_put_ += pages;
  pass_pages_put_ += pages;
  return pages;
}

CaptureObserver::Progress HookCapture::progress() const {
  CaptureObserver::Progress now;
  const std::uint64_t done = pass_pages_put_;
  now.status = "active";
  now.ram_total_bytes = layout().bytes();
  now.ram_remaining_bytes = bytes_of_pages(pass_pages_ > done ? pass_pages_ - done : 0);
  now.ram_transferred_bytes = bytes_of_pages(pages_put_);
  now.dirty_pages_per_s = dirty_pages_per_s_;
  now.dirty_sync_count = passes_;
  now.bandwidth_bytes_per_s = options_.sink_bytes_per_s ? options_.sink_bytes_per_s() : 0;
  return now;
}

void HookCapture::share(HookPhase phase) {
  if (!shared_progress_) return;
  const CaptureObserver::Progress now = progress();
  HookProgress shared;
  shared.phase = phase;
  shared.epoch = options_.epoch;
  shared.pager_pid = static_cast<std::uint64_t>(::getpid());
  shared.started_ns = static_cast<std::uint64_t>(started_at_.count());
  shared.updated_ns = static_cast<std::uint64_t>(clock_.now().count());
  shared.pages_total = layout().pages();
  shared.pages_done = pass_pages_put_;
  shared.pages_left = pages_of_bytes(now.ram_remaining_bytes);
  shared.pass = now.dirty_sync_count;
  shared.bytes_moved = now.ram_transferred_bytes;
  shared.bytes_per_s = now.bandwidth_bytes_per_s;
  shared.dirty_pages_per_s = now.dirty_pages_per_s;
  shared_progress_->write(shared);
}

Result<HookCapture::Verdict> HookCapture::tell_progress() {
  share(HookPhase::brownout);
  const Verdict verdict = observer_.on_progress(progress());
  if (verdict == Verdict::abort || cancel_.canceled()) {
    return fail(Errc::canceled, "the capture was given up");
  }
  return verdict;
}

// An error that is not the pass's own leaves its thread behind: abort() waits for it, once the sink was told.
// Before the pass and its collections: a page that comes later is named by a later one.
Result<void> HookCapture::note_missing() {
  PF_TRY(client_.refresh(Deadline::after(clock_, kRequestBound)));
  pages_missing_ = client_.vm().state == HookState::restoring;
  if (pages_missing_) ++passes_missing_;
  return {};
}

Result<PageOut::LivePass> HookCapture::live_pass() {
  PF_TRY(note_missing());
  memory_.begin_pass(HookMemory::Holes::looked_up);
  pass_pages_ = passes_ == 0 ? layout().pages() : page_out_.dirty().count();
  pass_pages_put_ = 0;
  ++passes_;
  observer_.on_pass(passes_);
  pass_thread_ = std::thread([this] {
    auto result = page_out_.run_live_pass();
    const std::lock_guard lock(mutex_);
    pass_result_.emplace(std::move(result));
    pass_ended_.notify_all();
  });
  std::unique_lock lock(mutex_);
  while (!pass_ended_.wait_for(lock, kCaptureTellInterval,
                               [this] { return pass_result_.has_value(); })) {
    lock.unlock();
    PF_ASSIGN(const Verdict verdict, tell_progress());
    switch_now_ = verdict == Verdict::switch_now;
    lock.lock();
  }
  lock.unlock();
  join();
  auto result = std::move(*pass_result_);
  pass_result_.reset();
  return result;
}

Result<HookCapture::Verdict> HookCapture::tell_not_converging() {
  if (clock_.now() - told_not_converging_at_ < kTellNotConvergingInterval) return Verdict::go_on;
  told_not_converging_at_ = clock_.now();
  const Verdict verdict = observer_.on_not_converging(progress());
  if (verdict == Verdict::abort) return fail(Errc::canceled, "the capture was given up");
  return verdict;
}

Result<bool> HookCapture::may_stop_guest(const PageOut::LivePass& live) {
  if (pages_missing_) {
    if (!switch_now_) return false;
    return fail(Errc::timeout,
                "the guest cannot be stopped: pages of it are still missing here, and nobody may "
                "be bringing them");
  }
  PassFacts facts = live.facts;
  // Those were made to wait, and say nothing of how it converges.
  facts.passes_done -= std::min(passes_missing_, facts.passes_done);
  const std::uint64_t store = options_.sink_bytes_per_s ? options_.sink_bytes_per_s() : 0;
  if (store != 0) facts.write_bytes_per_s = store;
  const auto end = brownout_end({options_.max_downtime, options_.passes_max}, facts);
  Verdict forced = switch_now_ ? Verdict::switch_now : Verdict::go_on;
  if (end == BrownoutEnd::pass_limit && forced == Verdict::go_on) {
    PF_ASSIGN(forced, tell_not_converging());
  }
  const bool converged = end.has_value() && end != BrownoutEnd::pass_limit;
  return (converged || forced == Verdict::switch_now) && observer_.may_switch();
}

Result<void> HookCapture::run_brownout() {
  while (true) {
    PF_ASSIGN(const PageOut::LivePass live, live_pass());
    if (live.pass.duration > Nanoseconds(0)) {
      dirty_pages_per_s_ = pages_of_bytes(live.facts.dirty_bytes_per_s);
    }
    pass_pages_ = pages_of_bytes(live.facts.remaining_bytes);
    pass_pages_put_ = 0;
    PF_ASSIGN(const Verdict verdict, tell_progress());
    switch_now_ = switch_now_ || verdict == Verdict::switch_now;
    PF_ASSIGN(const bool stop, may_stop_guest(live));
    if (stop) return stop_guest();
    pollfd waiting{.fd = cancel_.fd(), .events = POLLIN, .revents = 0};
    const int idle_ms = pages_missing_ ? kIdleWhileMissingMs : kIdleMs;
    if (live.pass.duration < Milliseconds(idle_ms)) ::poll(&waiting, 1, idle_ms);
  }
}

Result<void> HookCapture::stop_guest() {
  prefer_quick_wakeup();
  stopped_at_ = clock_.now().count();
  return client_.pause(Deadline::after(clock_, kRequestBound), options_.blackout_limit);
}

Result<void> HookCapture::run_blackout() {
  memory_.begin_pass(HookMemory::Holes::taken_as_data);
  ++passes_;
  PF_ASSIGN(const PassStats pass, page_out_.run_blackout());
  blackout_pages_ = pass.pages;
  ram_complete_at_ = clock_.now().count();
  PF_ASSIGN(state_, client_.save_state(Deadline::after(clock_, kRequestBound)));
  state_complete_at_ = clock_.now().count();
  share(HookPhase::blackout);
  return {};
}

Result<void> HookCapture::commit_source() {
  commit_sent_ = true;
  auto done = client_.commit(options_.epoch, Deadline::after(clock_, kRequestBound));
  // Refused, or given up before: nothing was committed.
  const bool not_committed =
      !done && (done.error().code == Errc::canceled || done.error().code == Errc::vmm);
  if (not_committed) commit_sent_ = false;
  if (done) share(HookPhase::released);
  return done;
}

bool HookCapture::request_stop() {
  cancel_.cancel();
  return client_.give_up();
}

Result<void> HookCapture::abort() {
  if (commit_sent_) return fail(Errc::invalid, "COMMIT was sent: the hand-off is being finished");
  request_stop();
  join();
  const Deadline bound = Deadline::after(clock_, kResumedBound);
  while (true) {
    auto look = HookClient::connect(socket_path_, HookClient::Role::observer, bound);
    if (!look) return tl::make_unexpected(std::move(look).error());
    if ((*look)->vm().pid != client_.vm().pid) {
      return fail(Errc::gone, fmt::format("VMM {} has ended", client_.vm().pid));
    }
    const HookState state = (*look)->vm().state;
    if (state == HookState::running || state == HookState::restoring) return {};
    if (bound.passed()) {
      return fail(Errc::timeout,
                  fmt::format("VMM {} does not say that its guest runs again", client_.vm().pid));
    }
    ::poll(nullptr, 0, kLookIntervalMs);
  }
}

CaptureStats HookCapture::stats() const {
  CaptureStats now;
  now.passes = passes_;
  now.pages_stored = pages_put_;
  now.blackout_pages = blackout_pages_;
  now.bytes_received = bytes_of_pages(pages_put_);
  now.stopped_at = Nanoseconds(stopped_at_);
  now.continued_at = now.stopped_at;
  now.ram_complete_at = Nanoseconds(ram_complete_at_);
  now.state_complete_at = Nanoseconds(state_complete_at_);
  return now;
}

}  // namespace pageferry
