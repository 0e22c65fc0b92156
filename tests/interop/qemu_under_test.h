// QemuUnderTest: a real QEMU of our own with the guest of tests/guest in it, ended with the test.
//
// The guest comes from tests/guest/prepare, QEMU 10 too. A guest on QEMU 7.2 under TCG gets a RAM size that is no multiple of
// 256 KiB, without which that version loses dirty pages (docs/qemu-migration-stream.md).
//
// Thread rule: one thread.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "fakes/scratch_directory.h"
#include "transport/os/clock.h"
#include "vmstate/qmp_client.h"

namespace pageferry::testing_support {

struct QemuSetup {
  std::string version = "10";  // "10" or "7.2"
  unsigned memory_mib = 256;
  unsigned fill_mib = 64;
  unsigned dirty_mib_s = 20;
  unsigned dirty_ws_mib = 16;
  bool boots_guest = true;          // false: firmware only, which is quick and writes little
  std::string machine_options;      // appended to -machine TYPE, e.g. ",memory-backend=mem0"
  std::vector<std::string> memory;  // instead of -m: options that make the guest's memory
  std::vector<std::string> extra;
};

class QemuUnderTest {
 public:
  explicit QemuUnderTest(const QemuSetup& setup);
  ~QemuUnderTest();
  QemuUnderTest(const QemuUnderTest&) = delete;
  QemuUnderTest& operator=(const QemuUnderTest&) = delete;

  // Path of QEMU `version`; fills the cache the first time.
  static std::string executable(const std::string& version);
  // Memory in KiB for a setup without options of its own.
  static unsigned long memory_kib(const QemuSetup& setup);

  QmpClient& qmp() { return *qmp_; }
  // A second monitor, for the test's own questions.
  QmpClient& watch() { return *watch_; }
  pid_t pid() const { return pid_; }
  const std::string& directory() const { return directory_.path(); }

  std::string run_state();
  // QEMU reports the end of a migration a moment before its run state follows.
  bool reaches_run_state(const std::string& state, Seconds bound);
  // All that the guest said so far.
  std::string serial() const;
  // Waits until the guest said `text`, after the first `from` bytes; false at the end of `bound`.
  bool wait_for_serial(const std::string& text, std::size_t from, Seconds bound) const;
  void command(char letter) const;  // to the guest, see tests/guest/guest_init.c
  // Counter of the guest's last heartbeat; 0 when there was none.
  unsigned long last_heartbeat() const;

 private:
  void spawn(const std::vector<std::string>& arguments);
  std::unique_ptr<QmpClient> connect(const std::string& name) const;

  MonotonicClock clock_;
  ScratchDirectory directory_;
  pid_t pid_ = -1;
  std::unique_ptr<QmpClient> qmp_;
  std::unique_ptr<QmpClient> watch_;
};

}  // namespace pageferry::testing_support
