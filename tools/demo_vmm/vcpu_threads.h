// VcpuThreads: a thread for each vCPU, and the one way to stop and start them all.
//
// Thread rule: pause() and resume() from one thread at a time; failure() from any. Lifetime: vCPUs and doorbells are longer.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tools/demo_vmm/vcpu.h"

namespace pageferry::demo {

class VcpuThreads {
 public:
  // Paused.
  VcpuThreads(const std::vector<std::unique_ptr<Vcpu>>& vcpus, Doorbells& doorbells);
  ~VcpuThreads();
  VcpuThreads(const VcpuThreads&) = delete;
  VcpuThreads& operator=(const VcpuThreads&) = delete;

  // Returns when no vCPU runs. Doorbells that wait must have been hurried before.
  void pause();
  void resume();
  // Why a vCPU cannot run on; empty while all can. Such a vCPU stays where it is.
  std::string failure() const;

 private:
  enum class Wanted : std::uint8_t { pause, run, end };
  void live(Vcpu& vcpu);
  void kick_all();

  const std::vector<std::unique_ptr<Vcpu>>& vcpus_;
  Doorbells& doorbells_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Wanted wanted_ = Wanted::pause;
  std::size_t running_ = 0;
  std::string failure_;
  std::vector<std::thread> threads_;  // last: they use the rest
};

}  // namespace pageferry::demo
