// Length and checksum first, then the fields in order by a reader that cannot leave the bytes; each is held against its limit before use.
#include "tools/demo_vmm/vm_state.h"

#include <fmt/core.h>

#include <algorithm>
#include <string_view>

#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace pageferry::demo {
namespace {

constexpr std::string_view kMagic("PFDEMOVM", 8);
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kFixedBytes = 72;
constexpr std::size_t kLengthAt = 12;
constexpr std::size_t kCrcBytes = 4;
constexpr std::uint32_t kPiecesMax = 8;
constexpr std::uint32_t kPieceBytesMax = 65'536;
constexpr std::size_t kStateBytesMax = std::size_t{4} << 20;

using Bytes = std::vector<std::byte>;

template <std::unsigned_integral T>
void put(Bytes& out, T value) {
  out.resize(out.size() + sizeof value);
  store_le(std::span(out), out.size() - sizeof value, value);
}
void put_bytes(Bytes& out, std::span<const std::byte> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

// Takes fields from the front.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <std::unsigned_integral T>
  Result<T> take(std::string_view field, T minimum, T maximum) {
    if (left_.size() < sizeof(T)) {
      return fail(Errc::corrupt, fmt::format("demo VMM state: ends before {}", field));
    }
    const T value = load_le<T>(left_, 0);
    left_ = left_.subspan(sizeof(T));
    if (value < minimum || value > maximum) {
      return fail(Errc::corrupt, fmt::format("demo VMM state: {} is {}, must be {} to {}", field,
                                             value, minimum, maximum));
    }
    return value;
  }
  Result<std::uint64_t> take_any(std::string_view field) {
    return take<std::uint64_t>(field, 0, ~std::uint64_t{0});
  }
  Result<Bytes> take_bytes(std::string_view field, std::size_t size) {
    if (left_.size() < size) {
      return fail(Errc::corrupt, fmt::format("demo VMM state: ends in {}", field));
    }
    const auto part = left_.first(size);
    left_ = left_.subspan(size);
    return Bytes(part.begin(), part.end());
  }
  std::size_t left_bytes() const { return left_.size(); }

 private:
  std::span<const std::byte> left_;
};

Result<void> check_whole(std::span<const std::byte> bytes) {
  if (bytes.size() < kFixedBytes + kCrcBytes || bytes.size() > kStateBytesMax) {
    return fail(Errc::corrupt, fmt::format("demo VMM state: {} bytes, must be {} to {}",
                                           bytes.size(), kFixedBytes + kCrcBytes, kStateBytesMax));
  }
  const auto magic = std::as_bytes(std::span(kMagic.data(), kMagic.size()));
  if (!std::equal(magic.begin(), magic.end(), bytes.begin())) {
    return fail(Errc::corrupt, "demo VMM state: does not begin with PFDEMOVM");
  }
  if (const auto version = load_le<std::uint32_t>(bytes, 8); version != kVersion) {
    return fail(Errc::version, fmt::format("demo VMM state: version {}, this program reads {}",
                                           version, kVersion));
  }
  if (const auto length = load_le<std::uint32_t>(bytes, kLengthAt); length != bytes.size()) {
    return fail(Errc::corrupt,
                fmt::format("demo VMM state: {} bytes, it says {}", bytes.size(), length));
  }
  const std::size_t crc_at = bytes.size() - kCrcBytes;
  const auto said = load_le<std::uint32_t>(bytes, crc_at);
  if (const auto actual = crc32c(bytes.first(crc_at)); actual != said) {
    return fail(Errc::corrupt,
                fmt::format("demo VMM state: checksum {:#010x}, must be {:#010x}", actual, said));
  }
  return {};
}

Result<QueuedRequest> take_request(Reader& reader, std::uint32_t vcpus) {
  QueuedRequest request;
  PF_ASSIGN(request.vcpu, reader.take<std::uint32_t>("vCPU of a disk request", 0, vcpus - 1));
  PF_ASSIGN(request.operation, reader.take<std::uint32_t>("operation", 0, ~std::uint32_t{0}));
  PF_ASSIGN(request.number, reader.take_any("request number"));
  PF_ASSIGN(request.block, reader.take_any("block"));
  return request;
}

Result<VcpuState> take_vcpu(Reader& reader) {
  PF_ASSIGN(const auto pieces, reader.take<std::uint32_t>("pieces of a vCPU", 1, kPiecesMax));
  PF_TRY(reader.take<std::uint32_t>("zero behind the pieces", 0, 0));
  VcpuState vcpu;
  for (std::uint32_t i = 0; i < pieces; ++i) {
    StatePiece piece;
    PF_ASSIGN(const auto kind, reader.take<std::uint32_t>("kind of a piece", 1, 64));
    PF_ASSIGN(const auto size, reader.take<std::uint32_t>("piece length", 1, kPieceBytesMax));
    piece.kind = static_cast<StatePiece::Kind>(kind);
    PF_ASSIGN(piece.bytes, reader.take_bytes("a piece", size));
    vcpu.push_back(std::move(piece));
  }
  return vcpu;
}

}  // namespace

std::vector<std::byte> encode_vm_state(const VmState& state) {
  Bytes out;
  put_bytes(out, std::as_bytes(std::span(kMagic.data(), kMagic.size())));
  put(out, kVersion);
  put(out, std::uint32_t{0});  // the length, below
  put(out, static_cast<std::uint32_t>(state.kind));
  put(out, static_cast<std::uint32_t>(state.vcpus.size()));
  put(out, static_cast<std::uint32_t>(state.disk_queue.size()));
  put(out, state.turns);
  for (const std::uint64_t rate : {state.rates.write_pages, state.rates.read_pages,
                                   state.rates.disk_requests, state.rates.give_backs}) {
    put(out, rate);
  }
  put(out, state.given_back_bytes);
  for (const QueuedRequest& request : state.disk_queue) {
    put(out, request.vcpu);
    put(out, request.operation);
    put(out, request.number);
    put(out, request.block);
  }
  for (const VcpuState& vcpu : state.vcpus) {
    put(out, static_cast<std::uint32_t>(vcpu.size()));
    put(out, std::uint32_t{0});
    for (const StatePiece& piece : vcpu) {
      put(out, static_cast<std::uint32_t>(piece.kind));
      put(out, static_cast<std::uint32_t>(piece.bytes.size()));
      put_bytes(out, piece.bytes);
    }
  }
  store_le(std::span(out), kLengthAt, static_cast<std::uint32_t>(out.size() + kCrcBytes));
  put(out, crc32c(out));
  return out;
}

Result<VmState> decode_vm_state(std::span<const std::byte> bytes) {
  PF_TRY(check_whole(bytes));
  Reader reader(bytes.first(bytes.size() - kCrcBytes).subspan(kLengthAt + sizeof(std::uint32_t)));
  VmState state;
  PF_ASSIGN(const auto kind, reader.take<std::uint32_t>("vCPU kind", 1, 2));
  state.kind = static_cast<VcpuKind>(kind);
  PF_ASSIGN(const auto vcpus, reader.take<std::uint32_t>("number of vCPUs", 1, kVcpusMax));
  PF_ASSIGN(const auto requests,
            reader.take<std::uint32_t>("disk requests", 0, std::uint32_t{Disk::kQueueMax}));
  PF_ASSIGN(state.turns, reader.take<std::uint32_t>("turns", 0, (1U << vcpus) - 1));
  PF_ASSIGN(state.rates.write_pages, reader.take_any("write rate"));
  PF_ASSIGN(state.rates.read_pages, reader.take_any("read rate"));
  PF_ASSIGN(state.rates.disk_requests, reader.take_any("disk rate"));
  PF_ASSIGN(state.rates.give_backs, reader.take_any("give-back rate"));
  PF_ASSIGN(state.given_back_bytes, reader.take_any("given back"));
  for (std::uint32_t i = 0; i < requests; ++i) {
    PF_ASSIGN(QueuedRequest request, take_request(reader, vcpus));
    state.disk_queue.push_back(request);
  }
  for (std::uint32_t i = 0; i < vcpus; ++i) {
    PF_ASSIGN(VcpuState vcpu, take_vcpu(reader));
    state.vcpus.push_back(std::move(vcpu));
  }
  if (reader.left_bytes() != 0) {
    return fail(Errc::corrupt,
                fmt::format("demo VMM state: {} bytes behind the last vCPU", reader.left_bytes()));
  }
  return state;
}

}  // namespace pageferry::demo
