// A recovery's beginning: the pager that fed this QEMU is dead. Bring the migration to postcopy-paused, let QEMU listen for a new channel
// (`migrate-recover`), ask what is there, go on.
//
// Only the first two are commands, and both may be sent out-of-band: while a thread that waits for a page keeps the monitor from
// answering, they go through the connection that the first pager left (qemu_out_of_band.h). QEMU takes the new channel, and all that
// follows on it, in threads that wait for nobody. Once the page is there the monitor answers, and is used for the end.
#include <fmt/format.h>

#include <thread>
#include <utility>

#include "vmstate/qemu_out_of_band.h"
#include "vmstate/qemu_restore_impl.h"
#include "vmstate/qemu_stream_writer.h"

namespace pageferry {
namespace {

using nlohmann::json;

// Takes the urgent channel of a recovery late; before: waits for it first.
constexpr int kQemu80 = 80000;
// QEMU sees within milliseconds that the old channel is closed. One that goes on refusing is in another state, which its monitor says.
constexpr Seconds kRefusedBound{5};

// Enters a block's received pages into the map. A backing page counts when its first page does:
// QEMU marks all of it at once.
void mark_received(SentMap& sent, const RamBlock& block,
                   const qemu_stream::ReceivedBitmap& bitmap) {
  constexpr std::uint64_t kBits = 8;
  const std::uint64_t unit = pages_of_bytes(block.backing_page_bytes);
  for (std::uint64_t page = 0; page < block.pages(); page += unit) {
    const auto byte = std::to_integer<unsigned>(bitmap.bits[page / kBits]);
    if ((byte >> (page % kBits) & 1U) != 0) sent.mark_received({block.first_page + page, unit});
  }
}

}  // namespace

// Brings the destination to postcopy-paused, from wherever a dead pager left it.
Result<void> RealQemuRestore::make_recoverable(Deadline deadline) {
  for (;;) {
    PF_ASSIGN(const std::string status, migration_status(deadline));
    if (status == "postcopy-paused" || status == "completed") return {};
    const bool alive = status == "postcopy-active" || status == "postcopy-recover" ||
                       status == "postcopy-recover-setup";
    if (!alive) {
      return fail(Errc::vmm,
                  fmt::format("the destination QEMU cannot be attached to: its migration "
                              "is '{}', not postcopy-paused",
                              status));
    }
    if (deadline.passed()) {
      return fail(Errc::timeout, fmt::format("the destination QEMU's migration stays '{}': is "
                                             "another pager serving it?",
                                             status));
    }
    // The dead pager's socket may hang half closed; refused while QEMU is already on its way to
    // paused.
    const auto paused = qmp_->execute("migrate-pause", json::object(), deadline);
    if (!paused && paused.error().code != Errc::vmm) return tl::make_unexpected(paused.error());
    std::this_thread::sleep_for(kAskAgain);
  }
}

Result<void> RealQemuRestore::attach(const QemuState& state, PageSupply& supply,
                                     Deadline deadline) {
  PF_CHECK(!channels_ && !loop_);
  PF_TRY(state.layout.check_same_blocks(supply.layout()));
  if (qmp_ == nullptr) return attach_out_of_band(state.layout, supply, deadline);
  PF_TRY(make_recoverable(deadline));
  PF_ASSIGN(const std::string status, migration_status(deadline));
  // Also of a completed one: its capabilities may still be on.
  PF_ASSIGN(const PagePlacement placement, placement_in_use(*qmp_, deadline));
  placement_ = placement;
  if (status == "completed") {
    already_completed_ = true;
    return {};
  }
  PF_TRY(look_at_memory(state.layout, placement, deadline));
  if (memory_) {
    // It has been open since the devices were loaded.
    auto userfault = memory_->userfault();
    if (!userfault) return tl::make_unexpected(std::move(userfault).error());
  }
  PF_TRY(recover(*qmp_, deadline));
  return go_on(supply, deadline);
}

// The same without a word from the monitor: what it would say is in the map, and the state of the migration shows in what QEMU refuses.
Result<void> RealQemuRestore::attach_out_of_band(const MemoryLayout& captured, PageSupply& supply,
                                                 Deadline deadline) {
  auto same = map_->layout.check_same_blocks(captured);
  if (!same) {
    return with_context(std::move(same).error(),
                        fmt::format("memory map of QEMU {}", map_->process.pid));
  }
  layout_ = map_->layout;
  pages_total_ = layout_.pages();
  placement_ = map_->placement;
  auto commands = QemuOutOfBand::take(map_->process, map_->out_of_band_inode);
  if (!commands) {
    return with_context(
        std::move(commands).error(),
        fmt::format("no way to the out-of-band connection of QEMU {}", map_->process.pid));
  }
  PF_TRY(recover_from_any_state(*commands, deadline));
  return go_on(supply, deadline);
}

Result<void> RealQemuRestore::recover(QmpCommands& commands, Deadline deadline) {
  PF_TRY(commands.execute("migrate-recover", {{"uri", "unix:" + options_.channel_socket_path}},
                          deadline));
  return {};
}

Result<void> RealQemuRestore::recover_from_any_state(QmpCommands& commands, Deadline deadline) {
  const Deadline patience = Deadline::after(clock_, kRefusedBound);
  for (;;) {
    auto recovering = recover(commands, deadline);
    const bool not_yet = !recovering && recovering.error().code == Errc::vmm;
    if (!not_yet || patience.passed() || stop_requested_) return recovering;
    // Not paused: as in make_recoverable().
    const auto paused = commands.execute("migrate-pause", json::object(), deadline);
    if (!paused && paused.error().code != Errc::vmm) return tl::make_unexpected(paused.error());
    std::this_thread::sleep_for(kAskAgain);
  }
}

// QEMU listens for the new channel.
Result<void> RealQemuRestore::go_on(PageSupply& supply, Deadline deadline) {
  PF_ASSIGN(channels_, QemuPageChannels::connect(options_.channel_socket_path, layout_));
  if (preempt() && qemu_version_ < kQemu80) PF_TRY(channels_->connect_urgent());
  return_path_.emplace(channels_->main_fd(), layout_);
  auto sent = ask_what_is_there(deadline);
  if (!sent) return explain(std::move(sent).error(), deadline);
  if (memory_) PF_TRY(memory_->mark_present(layout_, *sent));
  PF_TRY(resume(deadline));
  prefetch_begun_ = true;
  return start_loop(supply, std::move(*sent), FirstPace::full);
}

Result<SentMap> RealQemuRestore::ask_what_is_there(Deadline deadline) {
  SentMap sent(layout_.pages());
  for (std::size_t index = 0; index < layout_.blocks().size(); ++index) {
    const RamBlock& block = layout_.blocks()[index];
    ByteBuffer bytes;
    qemu_stream::append_recv_bitmap_request(bytes, block.name);
    PF_TRY(channels_->write(bytes, deadline));
    for (bool answered = false; !answered;) {
      PF_ASSIGN(const auto message, return_path_->next(deadline));
      const auto* bitmap = std::get_if<qemu_stream::ReceivedBitmap>(&message);
      if (bitmap != nullptr && bitmap->block == index) {
        mark_received(sent, block, *bitmap);
        answered = true;
      } else if (const auto* request = std::get_if<qemu_stream::PageRequest>(&message)) {
        early_requests_.push_back(request->run);
      }
    }
  }
  return sent;
}

Result<void> RealQemuRestore::resume(Deadline deadline) {
  if (preempt() && qemu_version_ >= kQemu80) PF_TRY(channels_->connect_urgent());
  ByteBuffer bytes;
  qemu_stream::append_postcopy_resume(bytes);
  PF_TRY(channels_->write(bytes, deadline));
  for (;;) {
    PF_ASSIGN(const auto message, return_path_->next(deadline));
    if (const auto* request = std::get_if<qemu_stream::PageRequest>(&message)) {
      early_requests_.push_back(request->run);
    }
    const auto* ack = std::get_if<qemu_stream::ResumeAck>(&message);
    if (ack == nullptr) continue;
    if (ack->value == 1) return {};
    return fail(Errc::vmm, fmt::format("the destination QEMU answered RESUME with {}", ack->value));
  }
}

}  // namespace pageferry
