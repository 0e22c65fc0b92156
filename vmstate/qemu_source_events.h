// QemuSourceEvents: what the event stream of a source QEMU says about the migration and the guest,
// so far. Events only; it asks nothing.
//
// Thread rule: one thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "transport/os/clock.h"

namespace pageferry {

// Why a guest is not going to run on, whatever the migration does.
enum class GuestEnd : std::uint8_t { none, shut_down, panicked, io_error, other_pause };

// "the guest shut down", ... for messages.
const char* guest_end_text(GuestEnd end);

class QemuSourceEvents {
 public:
  // `at`: when it was taken, monotonic.
  void apply(const nlohmann::json& event, Nanoseconds at);

  // Last status of MIGRATION events ("setup", "active", "pre-switchover", "device", "completed",
  // "failed", "cancelled", ...); empty before the first.
  const std::string& status() const { return status_; }
  bool migration_ended() const {
    return status_ == "failed" || status_ == "cancelled" || status_ == "completed";
  }
  // Dirty syncs seen (MIGRATION_PASS).
  std::uint64_t passes() const { return passes_; }
  bool stopped() const { return stopped_; }
  Nanoseconds stopped_at() const { return stopped_at_; }
  unsigned resets() const { return resets_; }
  GuestEnd guest_end() const { return guest_end_; }

 private:
  std::string status_;
  std::uint64_t passes_ = 0;
  bool stopped_ = false;
  Nanoseconds stopped_at_{0};
  unsigned resets_ = 0;
  GuestEnd guest_end_ = GuestEnd::none;
};

}  // namespace pageferry
