// DestinationMigration: the thaw half. Everything that can fail is done first (rule 7); the claim
// comes last.
//
//   prepare()     a VMM as the manifest says (QEMU: of the source's own command line), stopped; compared
//                 with the source's machine
//   take_over()   image and device state read and proved, loaded, owner.N+1, running.N+1, `cont`
//   finish()      pages on demand and prefetched until all are there
//   settle()      what the next move can use; resident.N+1; the image is removed unless it is to be kept
//   discard()     ends the VMM that never ran
//
// Knows no source process: what it needs is in the attempt's directory and in the records.
//
// Thread rule: one thread; request_stop() from any, restore_json() too while finish() runs.
// Lifetime: the HandOff and the clock outlive it.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "pager/page_file_reader.h"
#include "tools/pageferry/attempt_files.h"
#include "tools/pageferry/fail_points.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/options.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/destination_vmm.h"
#include "vmstate/manifest.h"
#include "vmstate/qemu_host_forwards.h"

namespace pageferry {

enum class TakeOver : std::uint8_t { runs_here, lost };

// The warning when free_image(), or a part of it, failed.
std::string image_stays_text(const Error& error);

class DestinationMigration {
 public:
  DestinationMigration(DestinationOptions options, CommonOptions common, HandOff& hand_off,
                       const Clock& clock)
      : options_(std::move(options)),
        common_(std::move(common)),
        hand_off_(hand_off),
        clock_(clock) {}
  ~DestinationMigration();

  // `attempt` names a directory of the VM in which manifest and prepare file are durable.
  Result<void> prepare(const std::string& attempt);
  // Of the prepared VMM. Precondition: prepare() succeeded.
  const nlohmann::json& machine() const { return vmm_->machine(); }

  // The page file is being written: reads a bit of its map, as far as it is on the store by now.
  // Optional; saves time only. True when there is more to read at once.
  bool preload();
  // These map blocks were written anew: preload() reads them again.
  void forget(const std::vector<MapBlockRun>& rewritten);
  // The image is committed: does what can be done before it is released. Optional.
  Result<void> load_early();
  // `state` must be what rule 4 gives for `epoch`. On Claim lost the VMM was ended. On an error
  // nothing runs here and the epoch, if it was claimed, was given up with the same image, unless
  // the error is Errc::not_owner or running.epoch was written.
  Result<TakeOver> take_over(Epoch epoch, const GuestState& state);
  // Tells the network where the guest is now (gratuitous ARP). After take_over(), off the downtime.
  Result<void> announce();
  Result<void> finish(const std::function<void(const nlohmann::json&)>& on_progress);
  // After finish(): the order of first touches goes onto the store, for the next restore; the records say that the image is not needed
  // any more, and it is removed unless it is to be kept. Nothing of it can harm the guest, so what failed, and what was otherwise than
  // asked for, is told as warnings.
  std::vector<std::string> settle();
  // Puts host forwards of user-mode networks back, once the source that held the ports has ended.
  Result<void> add_forwards(const std::vector<HostForward>& forwards);
  void discard();
  void request_stop();

  nlohmann::json destination_json() const;  // DestinationVmm::where()
  nlohmann::json downtime_split() const { return split_; }
  nlohmann::json restore_json() const;  // faults, prefetch, ram
  bool ran() const { return ran_; }
  // Its guest may be moved on while pages of it are missing. After prepare().
  bool can_be_moved_on() const { return manifest_.hook.has_value(); }
  // Monotonic clock of this host when `cont` was answered.
  Nanoseconds resumed_at() const { return resumed_at_; }

 private:
  Result<void> start_vmm();
  Unexpected in_file(Error error, const char* file_name) const;
  void follow_record();
  Result<void> free_image();
  Result<void> open_image();
  Result<void> load_devices();
  Result<void> check_vmm_lives() const;
  Result<TakeOver> claim_and_run(Epoch epoch, const GuestState& state);
  Result<TakeOver> run_claimed(Epoch epoch, const GuestState& state);
  Result<TakeOver> give_up(Epoch epoch, const GuestState& state, Error error);
  Result<TakeOver> lost_claim();

  const DestinationOptions options_;
  const CommonOptions common_;
  HandOff& hand_off_;
  const Clock& clock_;

  std::optional<Attempt> attempt_;
  VmManifest manifest_;
  std::string run_directory_;
  std::unique_ptr<PageFileReader> reader_;  // what vmm_ serves pages from
  std::unique_ptr<DestinationVmm> vmm_;
  std::unique_ptr<StorageFile> unfinished_pages_;
  PageReadPreparation prepared_reading_;
  PrefetchOrder order_ = PrefetchOrder::hot;  // in use
  std::string why_not_recorded_;              // empty: it is, or was not asked for
  Epoch epoch_{0};
  bool loaded_ = false;
  bool ran_ = false;
  Nanoseconds resumed_at_{0};
  Nanoseconds resident_at_{0};
  nlohmann::json split_ = nlohmann::json::object();
};

}  // namespace pageferry
