// Every operation gets a number among its kind when it is submitted, and the first fault that covers the number decides. What
// is only pretended never reaches the inner file; what is delayed is done at once and held back here. Hanging operations
// are simply forgotten: they stay in flight, as they would on a store that no longer answers.
#include "transport/faulty_file.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace pageferry {
namespace {

constexpr std::byte kFlippedBit{0x10};

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::optional<IoKind> kind_of(std::string_view word) {
  if (word == "read") return IoKind::read;
  if (word == "write") return IoKind::write;
  if (word == "sync") return IoKind::sync;
  if (word == "allocate") return IoKind::allocate;
  return std::nullopt;
}

std::optional<FaultEffect> effect_of(std::string_view word) {
  if (word == "eio") return FaultEffect::eio;
  if (word == "enospc") return FaultEffect::enospc;
  if (word == "flip") return FaultEffect::flip;
  if (word == "torn") return FaultEffect::torn;
  if (word == "lost") return FaultEffect::lost;
  if (word == "hang") return FaultEffect::hang;
  return std::nullopt;
}

// The N of "key=N".
std::optional<std::uint64_t> number_after(std::string_view word, std::string_view key) {
  if (word.substr(0, key.size()) != key) return std::nullopt;
  word.remove_prefix(key.size());
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size() || word.empty()) return std::nullopt;
  return value;
}

bool parse_when(std::string_view word, StorageFault& fault) {
  if (const auto after = number_after(word, "after=")) {
    fault.when = StorageFault::When::after;
    fault.count = *after;
    return true;
  }
  const auto nth = number_after(word, "nth=");
  if (!nth || *nth == 0) return false;
  fault.when = StorageFault::When::nth;
  fault.count = *nth;
  return true;
}

bool parse_effect(std::string_view word, StorageFault& fault) {
  if (const auto delay = number_after(word, "delay-ms=")) {
    if (*delay > static_cast<std::uint64_t>(kFaultDelayMax.count())) return false;
    fault.effect = FaultEffect::delay;
    fault.delay = Milliseconds(*delay);
    return true;
  }
  const auto effect = effect_of(word);
  if (!effect) return false;
  fault.effect = *effect;
  const bool moves_data = fault.kind == IoKind::read || fault.kind == IoKind::write;
  if (*effect == FaultEffect::flip) return moves_data;
  if (*effect == FaultEffect::torn) return fault.kind == IoKind::write;
  if (*effect == FaultEffect::lost) return fault.kind != IoKind::read;
  return true;
}

bool covers(const StorageFault& fault, IoKind kind, std::uint64_t number) {
  if (fault.kind != kind) return false;
  switch (fault.when) {
    case StorageFault::When::always:
      return true;
    case StorageFault::When::after:
      return number > fault.count;
    case StorageFault::When::nth:
      return number == fault.count;
  }
  return false;
}

}  // namespace

Result<std::vector<StorageFault>> parse_storage_faults(std::string_view spec) {
  std::vector<StorageFault> faults;
  for (const std::string_view part : split(spec, ',')) {
    const std::vector<std::string_view> words = split(part, ':');
    StorageFault fault;
    const std::optional<IoKind> kind = kind_of(words.front());
    bool good = kind.has_value() && (words.size() == 2 || words.size() == 3);
    if (good) {
      fault.kind = *kind;
      good =
          (words.size() == 2 || parse_when(words[1], fault)) && parse_effect(words.back(), fault);
    }
    if (!good) {
      return fail(
          Errc::invalid,
          fmt::format("storage fault '{}': want KIND[:after=N|:nth=N]:EFFECT, KIND read, write, "
                      "sync or allocate, EFFECT eio, enospc, flip (read, write), torn (write), "
                      "lost (not read), hang or delay-ms=0..{}",
                      part, kFaultDelayMax.count()));
    }
    faults.push_back(fault);
  }
  if (faults.size() > kStorageFaultsMax) {
    return fail(Errc::invalid,
                fmt::format("{} storage faults, limit {}", faults.size(), kStorageFaultsMax));
  }
  return faults;
}

Result<std::unique_ptr<FaultyFile>> FaultyFile::over(std::unique_ptr<StorageFile> inner,
                                                     std::vector<StorageFault> faults,
                                                     const Clock& clock) {
  std::unique_ptr<FaultyFile> file(new FaultyFile(std::move(inner), std::move(faults), clock));
  PF_TRY(file->set_up());
  return file;
}

FaultyFile::FaultyFile(std::unique_ptr<StorageFile> inner, std::vector<StorageFault> faults,
                       const Clock& clock)
    : StorageFile(inner->name(), inner->alignment_bytes(), inner->queue_depth()),
      inner_(std::move(inner)),
      faults_(std::move(faults)),
      clock_(clock) {
  operations_.resize(queue_depth());
  for (std::uint64_t i = queue_depth(); i > 0; --i) idle_.push_back(i - 1);
}

FaultyFile::~FaultyFile() = default;

Result<void> FaultyFile::set_up() {
  event_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  completions_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!event_.valid() || !timer_.valid() || !completions_.valid()) {
    return syscall_error("eventfd", name());
  }
  for (const int fd : {inner_->completion_fd(), event_.get(), timer_.get()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(completions_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return syscall_error("epoll_ctl", name());
    }
  }
  return {};
}

std::optional<StorageFault> FaultyFile::next_fault(IoKind kind) {
  const std::uint64_t number = ++counts_[static_cast<std::size_t>(kind)];
  for (const StorageFault& fault : faults_) {
    if (covers(fault, kind, number)) return fault;
  }
  return std::nullopt;
}

bool FaultyFile::pretend(IoKind kind, std::uint64_t tag, const std::optional<StorageFault>& fault) {
  if (!fault) return false;
  Result<void> outcome;
  switch (fault->effect) {
    case FaultEffect::hang:
      return true;
    case FaultEffect::eio:
      outcome = syscall_error("injected fault on", name(), EIO);
      break;
    case FaultEffect::enospc:
      outcome = syscall_error("injected fault on", name(), ENOSPC);
      break;
    case FaultEffect::lost:
      break;
    default:
      return false;
  }
  held_.push_back({Nanoseconds(0), {tag, kind, std::move(outcome)}});
  const std::uint64_t one = 1;
  while (::write(event_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
  return true;
}

std::uint64_t FaultyFile::begin(std::uint64_t tag, IoKind kind,
                                const std::optional<StorageFault>& fault) {
  const std::uint64_t inner_tag = idle_.back();
  idle_.pop_back();
  operations_[inner_tag] = Operation{tag, kind, fault, {}, {}};
  return inner_tag;
}

Result<void> FaultyFile::begun(std::uint64_t inner_tag, Result<void> submitted) {
  if (!submitted) idle_.push_back(inner_tag);
  return submitted;
}

Result<void> FaultyFile::submit_read_impl(std::span<std::byte> to, std::uint64_t offset,
                                          std::uint64_t tag, IoPriority priority) {
  const auto fault = next_fault(IoKind::read);
  if (pretend(IoKind::read, tag, fault)) return {};
  const std::uint64_t inner_tag = begin(tag, IoKind::read, fault);
  operations_[inner_tag].read_to = to;
  return begun(inner_tag, inner_->submit_read(to, offset, inner_tag, priority));
}

Result<void> FaultyFile::submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                           std::uint64_t tag, IoPriority priority) {
  auto fault = next_fault(IoKind::write);
  if (fault && fault->effect == FaultEffect::torn) {
    const std::size_t half = from.size() / 2 - from.size() / 2 % alignment_bytes();
    from = from.first(half);
    if (half == 0) fault->effect = FaultEffect::lost;
  }
  if (pretend(IoKind::write, tag, fault)) return {};
  const std::uint64_t inner_tag = begin(tag, IoKind::write, fault);
  if (fault && fault->effect == FaultEffect::flip) {
    Result<AlignedMemory> copy = AlignedMemory::map(from.size());
    if (!copy) return begun(inner_tag, tl::make_unexpected(copy.error()));
    std::memcpy(copy->data(), from.data(), from.size());
    copy->data()[from.size() / 2] ^= kFlippedBit;
    from = {copy->data(), from.size()};
    operations_[inner_tag].written = std::move(*copy);
  }
  return begun(inner_tag, inner_->submit_write(from, offset, inner_tag, priority));
}

Result<void> FaultyFile::submit_sync_impl(std::uint64_t tag) {
  const auto fault = next_fault(IoKind::sync);
  if (pretend(IoKind::sync, tag, fault)) return {};
  const std::uint64_t inner_tag = begin(tag, IoKind::sync, fault);
  return begun(inner_tag, inner_->submit_sync(inner_tag));
}

Result<void> FaultyFile::submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                              std::uint64_t tag) {
  const auto fault = next_fault(IoKind::allocate);
  if (pretend(IoKind::allocate, tag, fault)) return {};
  const std::uint64_t inner_tag = begin(tag, IoKind::allocate, fault);
  return begun(inner_tag, inner_->submit_allocate(offset, length, inner_tag));
}

void FaultyFile::finish(IoDone done, const Operation& operation) {
  Nanoseconds due{0};
  if (operation.fault) {
    if (operation.fault->effect == FaultEffect::delay) due = clock_.now() + operation.fault->delay;
    const bool flips_read = operation.fault->effect == FaultEffect::flip &&
                            operation.kind == IoKind::read && done.outcome.has_value();
    if (flips_read) operation.read_to[operation.read_to.size() / 2] ^= kFlippedBit;
  }
  held_.push_back({due, {operation.tag, operation.kind, std::move(done.outcome)}});
}

void FaultyFile::reap_impl(std::vector<IoDone>& done) {
  std::uint64_t count = 0;
  while (::read(event_.get(), &count, sizeof count) < 0 && errno == EINTR) {
  }
  inner_done_.clear();
  inner_->reap(inner_done_);
  for (IoDone& one : inner_done_) {
    const std::uint64_t inner_tag = one.tag;
    finish(std::move(one), operations_[inner_tag]);
    operations_[inner_tag] = Operation{};
    idle_.push_back(inner_tag);
  }
  const Nanoseconds now = clock_.now();
  const auto later = std::stable_partition(held_.begin(), held_.end(),
                                           [now](const Held& held) { return held.due <= now; });
  for (auto held = held_.begin(); held != later; ++held) done.push_back(std::move(held->done));
  held_.erase(held_.begin(), later);
  set_timer();
}

void FaultyFile::set_timer() {
  itimerspec when{};
  if (!held_.empty()) {
    const auto next = std::min_element(held_.begin(), held_.end(),
                                       [](const Held& a, const Held& b) { return a.due < b.due; });
    const Nanoseconds left = std::max(next->due - clock_.now(), Nanoseconds(1));
    when.it_value.tv_sec = left / Seconds(1);
    when.it_value.tv_nsec = (left % Seconds(1)).count();
  }
  PF_CHECK(::timerfd_settime(timer_.get(), 0, &when, nullptr) == 0);
}

int FaultyFile::completion_fd_impl() const {
  return completions_.get();
}

Result<std::uint64_t> FaultyFile::size_impl() const {
  return inner_->size();
}

}  // namespace pageferry
