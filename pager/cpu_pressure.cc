// Measured on an undisturbed machine with 2 CPUs: 1 to 6 % of the time without a CPU while a guest is restored, also with two busy
// processes beside it, and 15 % in the first 20 ms.
#include "pager/cpu_pressure.h"

namespace pageferry {
namespace {

constexpr Nanoseconds kWindow = Milliseconds(20);
constexpr int kShareWithoutCpu = 4;  // one part in so many
constexpr Nanoseconds kLongTurn = Milliseconds(5);
constexpr Nanoseconds kRemembered = Milliseconds(500);

}  // namespace

void CpuPressure::note(Nanoseconds took, Nanoseconds on_cpu, Nanoseconds now) {
  took_ += took;
  on_cpu_ += on_cpu;
  if (took < kLongTurn && took_ < kWindow) return;
  if (took >= kLongTurn || took_ - on_cpu_ > took_ / kShareWithoutCpu) until_ = now + kRemembered;
  took_ = on_cpu_ = Nanoseconds(0);
}

}  // namespace pageferry
