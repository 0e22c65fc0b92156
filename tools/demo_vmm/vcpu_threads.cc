// A vCPU is stopped by a flag and a signal. The flag (Vcpu::kick) is what it looks at; the signal, which does nothing, ends the system
// call that it may be in. The flag is set first, so that whichever comes too early for the one is caught by the other.
#include "tools/demo_vmm/vcpu_threads.h"

#include <csignal>

#include "transport/os/signals_blocked.h"

namespace pageferry::demo {
namespace {

int kick_signal() {
  return SIGRTMIN + 1;
}

void listen_for_kicks() {
  struct sigaction action {};
  action.sa_handler = [](int) {};  // no SA_RESTART: the system call ends
  ::sigaction(kick_signal(), &action, nullptr);
}

void unblock_kicks() {
  sigset_t kicks;
  ::sigemptyset(&kicks);
  ::sigaddset(&kicks, kick_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &kicks, nullptr);
}

}  // namespace

VcpuThreads::VcpuThreads(const std::vector<std::unique_ptr<Vcpu>>& vcpus, Doorbells& doorbells)
    : vcpus_(vcpus), doorbells_(doorbells) {
  listen_for_kicks();
  const SignalsBlocked blocked;
  for (const auto& vcpu : vcpus_) threads_.emplace_back([this, &vcpu] { live(*vcpu); });
}

VcpuThreads::~VcpuThreads() {
  {
    const std::lock_guard lock(mutex_);
    wanted_ = Wanted::end;
  }
  changed_.notify_all();
  kick_all();
  for (std::thread& thread : threads_) thread.join();
}

void VcpuThreads::kick_all() {
  for (const auto& vcpu : vcpus_) vcpu->kick();
  for (std::thread& thread : threads_) ::pthread_kill(thread.native_handle(), kick_signal());
}

void VcpuThreads::pause() {
  {
    const std::lock_guard lock(mutex_);
    if (wanted_ == Wanted::run) wanted_ = Wanted::pause;
  }
  kick_all();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return running_ == 0; });
}

void VcpuThreads::resume() {
  {
    const std::lock_guard lock(mutex_);
    if (wanted_ == Wanted::run) return;
    for (const auto& vcpu : vcpus_) vcpu->clear_kick();
    wanted_ = Wanted::run;
  }
  changed_.notify_all();
}

std::string VcpuThreads::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void VcpuThreads::live(Vcpu& vcpu) {
  unblock_kicks();
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return wanted_ != Wanted::pause; });
    if (wanted_ == Wanted::end) return;
    ++running_;
    lock.unlock();
    const Result<void> ran = vcpu.run(doorbells_);
    lock.lock();
    --running_;
    changed_.notify_all();
    if (ran) continue;
    if (failure_.empty()) failure_ = ran.error().message;
    return;
  }
}

}  // namespace pageferry::demo
