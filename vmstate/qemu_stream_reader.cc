// The receive buffer is read into behind what the parser left over (less than a page record), so
// pages need no second copy. Its size is a compromise: large enough that a system call is rare,
// small enough to stay in the second-level cache until the sink has copied the pages out of it.
#include "vmstate/qemu_stream_reader.h"

#include <fmt/core.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstring>

#include "vmstate/big_endian.h"
#include "vmstate/qemu_return_path.h"

namespace pageferry {
namespace {

constexpr std::size_t kReceiveBufferBytes = std::size_t{1} << 20;
static_assert(kReceiveBufferBytes >= 2 * qemu_stream::kParserWindowBytes);

// A zero page continues its block in 9 bytes: no record is shorter, so n bytes hold at most n / 9
// pages.
constexpr std::size_t kShortestPageRecordBytes = 9;
constexpr std::size_t kSmallestSliceBytes = 2 * qemu_stream::kContinuedPageRecordBytes;

// The stream's layout with the page sizes that back the blocks at the source.
Result<MemoryLayout> layout_with_backing(const MemoryLayout& layout,
                                         const std::vector<QemuRamBlock>& known) {
  std::vector<RamBlock> blocks = layout.blocks();
  for (RamBlock& block : blocks) {
    const QemuRamBlock* const same = find_ram_block(known, block.name);
    if (same == nullptr) {
      return fail(Errc::vmm,
                  fmt::format("RAM block \"{}\" of the stream is not in QEMU's \"info ramblock\"",
                              block.name));
    }
    block.backing_page_bytes = same->page_bytes;
  }
  return MemoryLayout::make(std::move(blocks));
}

}  // namespace

QemuStreamReader::QemuStreamReader(CaptureChannel& channel, PageSink& sink, const Clock& clock,
                                   std::vector<QemuRamBlock> blocks)
    : channel_(&channel),
      sink_(&sink),
      clock_(&clock),
      blocks_(std::move(blocks)),
      parser_(*this, sink) {}

QemuStreamReader::~QemuStreamReader() {
  channel_->close();
  join();
}

void QemuStreamReader::start() {
  thread_ = std::thread([this] { run(); });
}

void QemuStreamReader::join() {
  open_gate();
  if (thread_.joinable()) thread_.join();
}

void QemuStreamReader::run() {
  ::prctl(PR_SET_NAME, "pf-capture");
  auto result = read_stream();
  if (result) return;
  {
    const std::lock_guard lock(mutex_);
    failure_ = std::move(result).error();
    milestone_ = Milestone::failed;
    changed_.notify_all();
  }
  // Only now: QEMU fails when its stream is closed, and that must not be taken for the cause.
  channel_->close();
}

Result<void> QemuStreamReader::read_stream() {
  std::vector<std::byte> buffer(kReceiveBufferBytes);
  std::size_t filled = 0;
  while (!parser_.complete()) {
    PF_ASSIGN(const std::size_t got, channel_->receive(std::span(buffer).subspan(filled)));
    const Nanoseconds received_at = clock_->now();
    if (got == 0) {
      if (channel_->closed()) return fail(Errc::canceled, "migration stream: closed by us");
      return fail(Errc::gone,
                  fmt::format("migration stream: QEMU ended it {}", parser_.position()));
    }
    PF_TRY(tell_sink());
    filled += got;
    std::size_t used = 0;
    while (used < filled) {
      PF_TRY(wait_at_gate());
      const std::size_t slice = slice_before_gate(filled - used);
      PF_ASSIGN(const std::size_t taken, parser_.parse(std::span(buffer).subspan(used, slice)));
      used += taken;
      if (taken == 0 && slice == filled - used) break;
    }
    std::memmove(buffer.data(), buffer.data() + used, filled - used);
    filled -= used;
    publish_counters(got, clock_->now() - received_at);
  }
  state_complete_ns_ = clock_->now().count();
  reach(Milestone::state_complete);
  return {};
}

// Passes are told when the first bytes after them are at hand: several syncs without a page between
// them are one pass to the sink.
Result<void> QemuStreamReader::tell_sink() {
  if (!sink_begun_) return {};
  const std::uint32_t begun = passes_begun_.load();
  if (begun != passes_told_) {
    passes_told_ = begun;
    sink_->begin_pass(++pass_number_);
  }
  if (blackout_.load() && !blackout_told_) {
    blackout_told_ = true;
    pages_before_blackout_ = parser_.pages() + parser_.zero_pages();
    PF_TRY(sink_->begin_blackout());
  }
  return {};
}

void QemuStreamReader::close_gate(std::uint64_t pages_left) {
  const std::lock_guard lock(mutex_);
  gate_pages_left_ = pages_left;
}

void QemuStreamReader::open_gate() {
  const std::lock_guard lock(mutex_);
  gate_pages_left_ = 0;
  at_gate_ = false;
  changed_.notify_all();
}

bool QemuStreamReader::at_gate() const {
  const std::lock_guard lock(mutex_);
  return at_gate_;
}

// How many of `available` bytes may be parsed without passing the gate unseen.
std::size_t QemuStreamReader::slice_before_gate(std::size_t available) const {
  const std::lock_guard lock(mutex_);
  if (gate_pages_left_ == 0 || !sink_begun_) return available;
  const std::uint64_t gate = pages_total_ - std::min(pages_total_, gate_pages_left_);
  const std::uint64_t taken = parser_.pages() + parser_.zero_pages();
  const std::uint64_t pages = gate > taken ? gate - taken : 0;
  return std::min<std::uint64_t>(
      available, std::max<std::uint64_t>(pages * kShortestPageRecordBytes, kSmallestSliceBytes));
}

Result<void> QemuStreamReader::wait_at_gate() {
  std::unique_lock lock(mutex_);
  if (gate_pages_left_ == 0 || !sink_begun_) return {};
  const std::uint64_t slack = kSmallestSliceBytes / kShortestPageRecordBytes;
  if (parser_.pages() + parser_.zero_pages() + gate_pages_left_ + slack < pages_total_) return {};
  at_gate_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return gate_pages_left_ == 0; });
  if (channel_->closed()) return fail(Errc::canceled, "migration stream: closed by us");
  return {};
}

Result<bool> QemuStreamReader::wait_for(Milestone milestone, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto reached = [&] { return milestone_ >= milestone; };
  const int wait_ms = deadline.poll_timeout_ms();
  if (wait_ms < 0) {
    changed_.wait(lock, reached);
  } else {
    changed_.wait_for(lock, Milliseconds(wait_ms), reached);
  }
  if (milestone_ == Milestone::failed) return tl::make_unexpected(*failure_);
  return reached();
}

std::optional<Error> QemuStreamReader::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

QemuState QemuStreamReader::state_after_setup() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

QemuState QemuStreamReader::take_state() {
  const std::lock_guard lock(mutex_);
  state_.device_sections = parser_.state().device_sections;
  state_.vmdesc_json = parser_.state().vmdesc_json;
  return state_;
}

QemuStreamReader::Counters QemuStreamReader::counters() const {
  return {.bytes = bytes_.load(),
          .pages = pages_.load(),
          .zero_pages = zero_pages_.load(),
          .blackout_pages = blackout_pages_.load(),
          .working = Nanoseconds(working_ns_.load())};
}

void QemuStreamReader::publish_counters(std::uint64_t bytes_read, Nanoseconds worked) {
  bytes_.fetch_add(bytes_read, std::memory_order_relaxed);
  working_ns_.fetch_add(worked.count(), std::memory_order_relaxed);
  pages_.store(parser_.pages(), std::memory_order_relaxed);
  zero_pages_.store(parser_.zero_pages(), std::memory_order_relaxed);
  if (blackout_told_) {
    blackout_pages_.store(parser_.pages() + parser_.zero_pages() - pages_before_blackout_,
                          std::memory_order_relaxed);
  }
}

void QemuStreamReader::reach(Milestone milestone) {
  const std::lock_guard lock(mutex_);
  milestone_ = milestone;
  changed_.notify_all();
}

Result<void> QemuStreamReader::on_ping(std::uint32_t value) {
  ByteBuffer message;
  qemu_stream::append_pong(message, value);
  return channel_->send(message);
}

Result<void> QemuStreamReader::on_setup_complete(const QemuState& state) {
  QemuState known = state;
  auto layout = layout_with_backing(state.layout, blocks_);
  if (!layout) return tl::make_unexpected(layout.error());
  known.layout = std::move(*layout);
  PF_TRY(sink_->begin(known.layout));
  sink_->begin_pass(++pass_number_);
  passes_told_ = passes_begun_.load();
  sink_begun_ = true;
  pages_total_ = known.layout.pages();
  {
    const std::lock_guard lock(mutex_);
    state_ = std::move(known);
    gate_pages_left_ = std::min(gate_pages_left_, pages_total_ / 2);
  }
  reach(Milestone::setup_complete);
  return {};
}

void QemuStreamReader::on_ram_end() {
  ram_complete_ns_ = clock_->now().count();
  reach(Milestone::ram_complete);
}

}  // namespace pageferry
