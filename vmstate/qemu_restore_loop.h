// QemuRestoreLoop: the thread that serves a destination QEMU: page requests in, pages out, until
// every page is there. It alone touches the PageSupply, the channels and the page state; it waits
// in one epoll for the return path, finished reads, room in the channels, a new pace, and stop.
//
// Pages travel in the channels or, with a QemuMemoryAccess, go straight into QEMU's memory: then the
// userfaultfd is one more thing to wait for, and the channels carry only the end.
//
// Thread rule: construct, start() and destroy on one thread; wait(), request_stop() and the
// counters from any. Lifetime: supply and layout outlive it; owns the channels. Destroying it stops
// the thread and closes them: the destination then waits in postcopy-paused, its guest blocked
// where it misses a page.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "pager/listening_outlet.h"
#include "pager/page_in.h"
#include "pager/page_supply.h"
#include "pager/sent_map.h"
#include "pager/userfault_outlet.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/qemu_memory_access.h"
#include "vmstate/qemu_page_channels.h"
#include "vmstate/qemu_return_path_reader.h"

namespace pageferry {

class QemuRestoreLoop {
 public:
  enum class Event : std::uint8_t {
    devices_loaded,  // the PONG behind the device sections came
    all_received,    // the destination has every page and said so
    page_unproved,   // see error(): a page cannot be proved; the loop serves on, without prefetch
    failed,          // see error(): the loop has ended
  };

  static Result<std::unique_ptr<QemuRestoreLoop>> make(QemuPageChannels channels,
                                                       QemuReturnPathReader return_path,
                                                       PageSupply& supply,
                                                       const MemoryLayout& layout, SentMap sent,
                                                       PageInOptions options,
                                                       std::optional<QemuMemoryAccess> memory);
  ~QemuRestoreLoop();
  QemuRestoreLoop(const QemuRestoreLoop&) = delete;
  QemuRestoreLoop& operator=(const QemuRestoreLoop&) = delete;

  // The value of the PING behind the device sections.
  static constexpr std::uint32_t kDevicesLoadedPing = 3;

  // A request that came before the loop was made. Only before start().
  void add_request(PageRun run) { page_in_.request(run); }
  void start();
  // How prefetch begins. From any thread; a loop that is never told prefetches at full pace.
  void hold_prefetch() { pace_until_ = Nanoseconds::max().count(); }
  // The guest was resumed, or stays paused: full pace, after `settle_time` for the guest alone.
  void release_prefetch(Nanoseconds settle_time);
  // Waits for one event, or a failure (page_unproved, failed); nullopt at the deadline.
  std::optional<Event> wait(Event wanted, Deadline deadline);
  // Why. Precondition: wait() returned page_unproved or failed.
  Error error() const;
  // Ends the thread soon; wait() then returns failed with Errc::canceled.
  void request_stop();

  // The order of first touches. After the event all_received, behind which the loop touches no page.
  const TouchRecord& touches() const { return page_in_.touches(); }
  const PageInCounters& counters() const { return page_in_.counters(); }
  const LatencyHistogram& fault_latency() const { return page_in_.fault_latency(); }

 private:
  QemuRestoreLoop(QemuPageChannels channels, QemuReturnPathReader return_path, PageSupply& supply,
                  const MemoryLayout& layout, SentMap sent, PageInOptions options,
                  std::optional<QemuMemoryAccess> memory);
  enum class Turn : std::uint8_t { go_on, end };
  Result<void> open_epoll();
  Result<void> watch_input(int fd);
  Result<void> open_memory();
  Result<void> try_to_open_memory();
  void run();
  Result<Turn> turn();
  Result<void> read_requests();
  Result<void> send();
  Result<void> wait_for_event();
  Nanoseconds wait_limit() const;
  Result<void> watch(int fd, bool& watched_for_room, bool full);
  void publish(Event event);
  void publish_error(Event event, Error error);

  void choose_pace();

  MonotonicClock clock_;
  // Prefetch is gentle before this time; max: only recent pages for now.
  std::atomic<Nanoseconds::rep> pace_until_{0};
  PageSupply* supply_;
  QemuPageChannels channels_;
  QemuReturnPathReader return_path_;
  std::optional<QemuMemoryAccess> memory_;
  // Where memory_ is:
  std::optional<UserfaultOutlet> memory_outlet_;
  std::optional<ListeningOutlet> listening_;
  PageIn page_in_;

  UniqueFd epoll_;
  UniqueFd stop_;
  UniqueFd wake_;              // rung by other threads: something was set
  bool main_watched_ = false;  // for room
  bool urgent_watched_ = false;
  bool ended_pages_ = false;
  bool shut_ = false;
  bool failure_published_ = false;
  bool loaded_ = false;  // devices_loaded was published

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // guarded by mutex_:
  bool devices_loaded_ = false;
  bool all_received_ = false;
  Event error_event_ = Event::failed;
  std::optional<Error> error_;

  std::jthread thread_;
};

}  // namespace pageferry
