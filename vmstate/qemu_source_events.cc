// A fixed table of the events that matter. A guest that reboots (RESET) moves like any other; a
// guest that shuts down, panics or was stopped for an I/O error does not run on at a destination,
// and the caller has to say so.
#include "vmstate/qemu_source_events.h"

#include "vmstate/qmp_fields.h"

namespace pageferry {

const char* guest_end_text(GuestEnd end) {
  switch (end) {
    case GuestEnd::none:
      return "the guest runs";
    case GuestEnd::shut_down:
      return "the guest shut down during the migration";
    case GuestEnd::panicked:
      return "the guest panicked during the migration";
    case GuestEnd::io_error:
      return "the guest was stopped by an I/O error of its disk during the migration";
    case GuestEnd::other_pause:
      return "the guest was paused by somebody else during the migration";
  }
  return "";
}

void QemuSourceEvents::apply(const nlohmann::json& event, Nanoseconds at) {
  const std::string name = text_field(event, "event");
  const nlohmann::json data = object_field(event, "data");
  if (name == "MIGRATION") {
    status_ = text_field(data, "status");
  } else if (name == "MIGRATION_PASS") {
    ++passes_;
  } else if (name == "STOP") {
    stopped_ = true;
    stopped_at_ = at;
  } else if (name == "RESUME") {
    stopped_ = false;
  } else if (name == "RESET") {
    ++resets_;
  } else if (name == "SHUTDOWN") {
    guest_end_ = GuestEnd::shut_down;
  } else if (name == "GUEST_PANICKED") {
    if (text_field(data, "action") != "run") guest_end_ = GuestEnd::panicked;
  } else if (name == "BLOCK_IO_ERROR") {
    if (text_field(data, "action") == "stop") guest_end_ = GuestEnd::io_error;
  }
}

}  // namespace pageferry
