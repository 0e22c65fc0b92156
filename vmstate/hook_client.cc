// One request at a time: send, wait, check. Whatever comes in is copied and decoded before it is looked at, and a descriptor is asked what
// it is. Invariants:
//   I1  end_ goes open -> given_up or open -> committing, in one atomic step, before anything is sent or closed
//   I2  committing -> open only when the hook says by itself that it has refused
//   I3  after a wait that ended without an answer nothing is sent any more: a late answer would be taken for the next one's
#include "vmstate/hook_client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <optional>
#include <utility>

#include "vmstate/hook_packet.h"
#include "vmstate/hook_segment.h"
#include "vmstate/local_socket.h"
#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

using hook_protocol::GuestFacts;
using hook_protocol::Request;
using hook_protocol::SlotReply;
using hook_protocol::Type;

constexpr int kBetweenAttemptsMs = 1;

struct Answer {
  std::vector<std::byte> payload;
  UniqueFd descriptor;
};

// Memory that the pager reads through a mapping of its own: nothing may be missing behind its end.
Result<void> check_memory(const SlotReply& slot, const UniqueFd& memory) {
  struct stat status {};
  if (::fstat(memory.get(), &status) != 0) return syscall_error("fstat", slot.name);
  const int flags = ::fcntl(memory.get(), F_GETFL);
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || flags < 0 || (flags & O_ACCMODE) != O_RDONLY) {
    return fail(Errc::invalid,
                fmt::format("slot '{}': its descriptor is no file for reading", slot.name));
  }
  if (bytes >= slot.size_bytes && slot.memory_offset_bytes <= bytes - slot.size_bytes) return {};
  return fail(Errc::invalid,
              fmt::format("slot '{}': {} bytes from {} on, its memory has {}", slot.name,
                          slot.size_bytes, slot.memory_offset_bytes, bytes));
}

// Root may move everybody's guests, everybody else only their own.
Result<ucred> check_hook_peer(int connection) {
  PF_ASSIGN(const ucred peer, peer_of(connection, "hook connection"));
  if (::geteuid() == 0 || peer.uid == ::geteuid()) return peer;
  return fail(Errc::not_owner, fmt::format("the VMM, process {}, is of user {}, we are {}",
                                           peer.pid, peer.uid, ::geteuid()));
}

class SocketHookClient final : public HookClient {
 public:
  SocketHookClient(UniqueFd connection, pid_t pid) : connection_(std::move(connection)) {
    vm_.pid = pid;
  }
  Result<void> learn(Role role, Deadline deadline);

  const HookVm& vm() const override { return vm_; }
  int connection_fd() const override { return connection_.get(); }

  Result<void> refresh(Deadline deadline) override;
  Result<void> share_progress(const HookProgressWriter& progress, Deadline deadline) override {
    return ask_nothing({.type = Type::share_progress}, deadline, progress.descriptor());
  }
  Result<HookProgressReader> progress(Deadline deadline) override;
  void removed_into(DirtyBitmap& removed) const override { segment_->removed_into(removed); }

  Result<void> start_tracking(Deadline deadline, const std::string& since_attempt) override {
    PF_TRY(hook_protocol::check_text("attempt id", since_attempt, 0,
                                     hook_protocol::kAttemptIdBytesMax));
    return ask_nothing({.type = Type::track, .attempt_id = since_attempt}, deadline);
  }
  Result<void> collect_into(DirtyBitmap& dirty, Deadline deadline) override;
  Result<void> stop_tracking(Deadline deadline) override {
    return ask_nothing({.type = Type::untrack}, deadline);
  }
  Result<void> pause(Deadline deadline, Milliseconds blackout_limit) override {
    const auto limit_ms = static_cast<std::uint64_t>(blackout_limit.count());
    return ask_nothing({.type = Type::pause, .limit_ms = limit_ms}, deadline);
  }
  Result<std::vector<std::byte>> save_state(Deadline deadline) override;
  Result<void> commit(std::uint64_t epoch, Deadline deadline) override;
  Result<void> resume(std::uint64_t epoch, Deadline deadline) override {
    return ask_nothing({.type = Type::resume, .epoch = epoch}, deadline);
  }
  Result<void> end(Deadline deadline) override {
    return ask_nothing({.type = Type::end}, deadline);
  }
  bool give_up() override;

  Result<UniqueFd> take_userfault(Deadline deadline) override;
  Result<void> load_state(std::span<const std::byte> state, const std::string& attempt_id,
                          Deadline deadline) override;
  Result<void> resident(Deadline deadline) override {
    return ask_nothing({.type = Type::resident}, deadline);
  }

 private:
  enum class End : std::uint8_t { open, given_up, committing };

  Result<Answer> ask(Request request, Deadline deadline, int descriptor = -1);
  Result<Answer> exchange(const Request& request, Deadline deadline, int descriptor);
  Result<HookPacket> wait_for_packet(Deadline deadline);
  Result<void> ask_nothing(Request request, Deadline deadline, int descriptor = -1);
  Result<Answer> ask_for_descriptor(const Request& request, Deadline deadline);
  Result<void> learn_slots(std::uint32_t count, Deadline deadline);
  void take_facts(const GuestFacts& guest);

  UniqueFd connection_;
  std::atomic<End> end_{End::open};
  HookVm vm_;
  std::optional<HookSegmentView> segment_;
  std::uint32_t serial_ = 0;
  bool out_of_step_ = false;  // I3
};

Result<HookPacket> SocketHookClient::wait_for_packet(Deadline deadline) {
  for (;;) {
    pollfd entry{.fd = connection_.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&entry, 1, deadline.poll_timeout_ms());
    if (ready < 0 && errno != EINTR) return syscall_error("poll", "hook connection");
    if (ready > 0) {
      auto packet = receive_hook_packet(connection_.get());
      if (packet || packet.error().code != Errc::timeout) return packet;
    }
    if (deadline.passed()) return fail(Errc::timeout, "the hook does not answer");
  }
}

Result<Answer> SocketHookClient::exchange(const Request& request, Deadline deadline,
                                          int descriptor) {
  if (out_of_step_) return fail(Errc::gone, "an earlier request had no answer");
  PF_TRY(send_hook_packet(connection_.get(), hook_protocol::encode(request), descriptor));
  auto packet = wait_for_packet(deadline);
  if (!packet) {
    out_of_step_ = true;
    return tl::make_unexpected(std::move(packet).error());
  }
  PF_ASSIGN(
      const auto payload,
      hook_protocol::decode_reply({.type = request.type, .serial = request.serial}, packet->bytes));
  Answer answer{.payload = {payload.begin(), payload.end()}, .descriptor = {}};
  if (!packet->descriptors.empty()) answer.descriptor = std::move(packet->descriptors.front());
  return answer;
}

Result<Answer> SocketHookClient::ask(Request request, Deadline deadline, int descriptor) {
  if (end_.load() == End::given_up) return fail(Errc::canceled, "the move was given up");
  request.serial = ++serial_;
  auto answer = exchange(request, deadline, descriptor);
  if (!answer && end_.load() == End::given_up) {
    return fail(Errc::canceled, "the move was given up");
  }
  return answer;
}

Result<void> SocketHookClient::ask_nothing(Request request, Deadline deadline, int descriptor) {
  PF_ASSIGN(const Answer answer, ask(std::move(request), deadline, descriptor));
  return hook_protocol::decode_nothing(answer.payload);
}

Result<Answer> SocketHookClient::ask_for_descriptor(const Request& request, Deadline deadline) {
  PF_ASSIGN(Answer answer, ask(request, deadline));
  if (answer.descriptor.valid()) return answer;
  return fail(Errc::invalid, fmt::format("the hook answers request {} without a descriptor",
                                         static_cast<unsigned>(request.type)));
}

void SocketHookClient::take_facts(const GuestFacts& guest) {
  vm_.state = guest.state;
  vm_.epoch = guest.epoch;
  vm_.attempt_id = guest.attempt_id;
  vm_.tracked_since_attempt = guest.tracked_since_attempt;
}

Result<void> SocketHookClient::learn(Role role, Deadline deadline) {
  PF_ASSIGN(const Answer answer, ask_for_descriptor({.type = Type::hello,
                                                     .version_min = hook_protocol::kVersion,
                                                     .version_max = hook_protocol::kVersion,
                                                     .role = role},
                                                    deadline));
  PF_ASSIGN(const auto hello, hook_protocol::decode_hello(answer.payload));
  vm_.name = hello.vm_name;
  vm_.machine = hello.machine;
  vm_.placing = hello.placing;
  take_facts(hello.guest);
  if (hello.segment_bytes != hook_segment_bytes(hello.pages)) {
    return fail(Errc::invalid,
                fmt::format("a segment of {} bytes for {} pages, must be {}", hello.segment_bytes,
                            hello.pages, hook_segment_bytes(hello.pages)));
  }
  PF_ASSIGN(segment_, HookSegmentView::open(answer.descriptor, hello.pages));
  PF_TRY(learn_slots(hello.slots, deadline));
  if (vm_.layout.pages() != hello.pages) {
    return fail(Errc::invalid, fmt::format("memory slots of {} pages together, the hook said {}",
                                           vm_.layout.pages(), hello.pages));
  }
  if (hello.command_words == 0) return {};
  PF_ASSIGN(const Answer command, ask({.type = Type::get_command}, deadline));
  PF_ASSIGN(vm_.incoming_command, hook_protocol::decode_command(command.payload));
  return {};
}

Result<void> SocketHookClient::learn_slots(std::uint32_t count, Deadline deadline) {
  std::vector<SlotReply> slots;
  for (std::uint32_t i = 0; i < count; ++i) {
    PF_ASSIGN(Answer answer, ask({.type = Type::get_slot, .slot = i}, deadline));
    PF_ASSIGN(SlotReply slot, hook_protocol::decode_slot(answer.payload));
    if (slot.has_memory != answer.descriptor.valid()) {
      return fail(Errc::invalid, fmt::format("slot '{}' comes {} its memory", slot.name,
                                             slot.has_memory ? "without" : "with"));
    }
    if (slot.has_memory) {
      PF_TRY(check_memory(slot, answer.descriptor));
    }
    vm_.slots.push_back({.guest_address = slot.guest_address,
                         .host_address = slot.host_address,
                         .memory = std::move(answer.descriptor),
                         .memory_offset_bytes = slot.memory_offset_bytes});
    slots.push_back(std::move(slot));
  }
  PF_ASSIGN(vm_.layout, hook_protocol::check_slots(slots));
  return {};
}

Result<void> SocketHookClient::refresh(Deadline deadline) {
  PF_ASSIGN(const Answer answer, ask({.type = Type::get_state}, deadline));
  PF_ASSIGN(const GuestFacts guest, hook_protocol::decode_guest_facts(answer.payload));
  take_facts(guest);
  return {};
}

Result<HookProgressReader> SocketHookClient::progress(Deadline deadline) {
  PF_ASSIGN(const Answer answer, ask_for_descriptor({.type = Type::get_progress}, deadline));
  PF_TRY(hook_protocol::decode_nothing(answer.payload));
  return HookProgressReader::open(answer.descriptor);
}

Result<void> SocketHookClient::collect_into(DirtyBitmap& dirty, Deadline deadline) {
  PF_CHECK(dirty.pages() == vm_.layout.pages());
  PF_ASSIGN(const Answer answer, ask({.type = Type::collect}, deadline));
  PF_ASSIGN(const auto reply, hook_protocol::decode_collect(answer.payload));
  DirtyBitmap copied(dirty.pages());
  PF_TRY(segment_->dirty_into(copied, reply.collection));
  if (copied.count() != reply.pages) {
    return fail(Errc::invalid, fmt::format("the hook said {} dirty pages, its segment has {}",
                                           reply.pages, copied.count()));
  }
  dirty.merge_back(copied);
  return {};
}

Result<std::vector<std::byte>> SocketHookClient::save_state(Deadline deadline) {
  PF_ASSIGN(const Answer answer, ask_for_descriptor({.type = Type::save_state}, deadline));
  PF_ASSIGN(const std::uint64_t bytes, hook_protocol::decode_state_bytes(answer.payload));
  PF_TRY(check_sealed_memory("the device state", answer.descriptor, bytes, Sealed::content));
  return read_sealed_memory(answer.descriptor, bytes);
}

Result<void> SocketHookClient::commit(std::uint64_t epoch, Deadline deadline) {
  End expected = End::open;
  if (!end_.compare_exchange_strong(expected, End::committing)) {
    return fail(Errc::canceled, expected == End::given_up ? "the move was given up"
                                                          : "the move was committed before");
  }
  auto committed = ask_nothing({.type = Type::commit, .epoch = epoch}, deadline);
  if (!committed && committed.error().code == Errc::vmm) end_.store(End::open);  // I2
  return committed;
}

bool SocketHookClient::give_up() {
  End expected = End::open;
  if (!end_.compare_exchange_strong(expected, End::given_up)) return expected == End::given_up;
  static_cast<void>(::shutdown(connection_.get(), SHUT_RDWR));
  return true;
}

Result<UniqueFd> SocketHookClient::take_userfault(Deadline deadline) {
  PF_ASSIGN(Answer answer, ask_for_descriptor({.type = Type::take_userfault}, deadline));
  PF_TRY(hook_protocol::decode_nothing(answer.payload));
  PF_TRY(check_userfault("the hook's", answer.descriptor));
  return std::move(answer.descriptor);
}

Result<void> SocketHookClient::load_state(std::span<const std::byte> state,
                                          const std::string& attempt_id, Deadline deadline) {
  PF_TRY(hook_protocol::check_text("attempt id", attempt_id, 1, hook_protocol::kAttemptIdBytesMax));
  if (state.size() > hook_protocol::kStateBytesMax) {
    return fail(Errc::invalid, fmt::format("a device state of {} bytes, limit {}", state.size(),
                                           hook_protocol::kStateBytesMax));
  }
  PF_ASSIGN(const UniqueFd memory, make_sealed_memory("pageferry-state", state));
  return ask_nothing(
      {.type = Type::load_state, .state_bytes = state.size(), .attempt_id = attempt_id}, deadline,
      memory.get());
}

}  // namespace

// A hook that is flooded with connections drops those that have not said hello yet; so that is tried again, as long as there is time.
Result<std::unique_ptr<HookClient>> HookClient::connect(const std::string& socket_path, Role role,
                                                        Deadline deadline) {
  for (;;) {
    PF_ASSIGN(UniqueFd connection, connect_to(socket_path, SOCK_SEQPACKET, deadline));
    PF_ASSIGN(const ucred peer, check_hook_peer(connection.get()));
    auto client = std::make_unique<SocketHookClient>(std::move(connection), peer.pid);
    auto learned = client->learn(role, deadline);
    if (learned) return client;
    const bool dropped = learned.error().code == Errc::gone && client->vm().name.empty();
    if (!dropped || deadline.passed()) {
      return with_context(std::move(learned).error(), socket_path);
    }
    ::poll(nullptr, 0, kBetweenAttemptsMs);
  }
}

}  // namespace pageferry
