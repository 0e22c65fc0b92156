// sched_setattr(2), for which glibc 2.36 has no wrapper.
#include "transport/os/thread_priority.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace pageferry {
namespace {

constexpr std::int32_t kNice = -10;
constexpr std::uint64_t kResetOnFork = 1;    // SCHED_FLAG_RESET_ON_FORK
constexpr std::uint64_t kSliceNs = 100'000;  // the shortest the kernel accepts

// struct sched_attr of <linux/sched/types.h>, first version.
struct SchedulingAttributes {
  std::uint32_t size = sizeof(SchedulingAttributes);
  std::uint32_t policy = SCHED_OTHER;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t priority = 0;
  std::uint64_t runtime_ns = 0;  // of a SCHED_OTHER thread: its slice
  std::uint64_t deadline_ns = 0;
  std::uint64_t period_ns = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

}  // namespace

void prefer_quick_wakeup() {
  SchedulingAttributes attributes;
  attributes.flags = kResetOnFork;
  attributes.runtime_ns = kSliceNs;
  attributes.nice = kNice;
  if (::syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return;
  attributes.nice = 0;
  [[maybe_unused]] const long ignored = ::syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace pageferry
