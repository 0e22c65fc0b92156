// A callback that returns something positive has not kept the interface; that is an error too, because nobody knows what it means.
#include "tools/vmm_hook/vmm_callbacks.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <exception>

#include "vmstate/hook_protocol.h"

namespace pageferry {
namespace {

template <typename Call>
Result<void> checked(const char* name, Call call) {
  int returned = 0;
  try {
    returned = call();
  } catch (const std::exception& error) {
    return fail(Errc::vmm, fmt::format("the VMM's {} threw: {}", name, error.what()));
  } catch (...) {
    return fail(Errc::vmm, fmt::format("the VMM's {} threw", name));
  }
  if (returned == 0) return {};
  return fail(Errc::vmm, returned < 0 ? fmt::format("the VMM's {} failed: {} ({})", name,
                                                    std::strerror(-returned), returned)
                                      : fmt::format("the VMM's {} returned {}", name, returned));
}

}  // namespace

Result<void> VmmCallbacks::pause() {
  return checked("pause", [this] { return functions_.pause(opaque_); });
}

Result<void> VmmCallbacks::resume() {
  return checked("resume", [this] { return functions_.resume(opaque_); });
}

Result<std::vector<std::byte>> VmmCallbacks::save_state() {
  pageferry_state_writer writer;
  PF_TRY(checked("save_state", [&] { return functions_.save_state(opaque_, &writer); }));
  return std::move(writer.bytes);
}

Result<void> VmmCallbacks::load_state(std::span<const std::byte> state) {
  pageferry_state_reader reader{.bytes = state, .at = 0};
  return checked("load_state", [&] { return functions_.load_state(opaque_, &reader); });
}

void VmmCallbacks::moved_away() {
  if (functions_.moved_away == nullptr) return;
  static_cast<void>(checked("moved_away", [this] {
    functions_.moved_away(opaque_);
    return 0;
  }));
}

void VmmCallbacks::resident() {
  if (functions_.resident == nullptr) return;
  static_cast<void>(checked("resident", [this] {
    functions_.resident(opaque_);
    return 0;
  }));
}

Result<void> VmmCallbacks::start_log() {
  return checked("set_dirty_log(1)", [this] { return functions_.set_dirty_log(opaque_, 1); });
}

Result<void> VmmCallbacks::fetch_and_rearm(std::size_t block, std::span<std::uint64_t> words) {
  return checked("fetch_dirty", [&] {
    return functions_.fetch_dirty(opaque_, block, words.data(), words.size());
  });
}

Result<void> VmmCallbacks::stop_log() {
  return checked("set_dirty_log(0)", [this] { return functions_.set_dirty_log(opaque_, 0); });
}

}  // namespace pageferry

extern "C" {

int pageferry_state_write(pageferry_state_writer* writer, const void* bytes, size_t size_bytes) {
  if (writer == nullptr || (bytes == nullptr && size_bytes > 0)) return -EINVAL;
  if (size_bytes > pageferry::hook_protocol::kStateBytesMax - writer->bytes.size()) return -EFBIG;
  try {
    const auto* const from = static_cast<const std::byte*>(bytes);
    writer->bytes.insert(writer->bytes.end(), from, from + size_bytes);
  } catch (...) {
    return -ENOMEM;
  }
  return 0;
}

int pageferry_state_read(pageferry_state_reader* reader, void* bytes, size_t size_bytes) {
  if (reader == nullptr || (bytes == nullptr && size_bytes > 0)) return -EINVAL;
  if (reader->bytes.size() - reader->at < size_bytes) return -ENODATA;
  if (size_bytes > 0) std::memcpy(bytes, reader->bytes.data() + reader->at, size_bytes);
  reader->at += size_bytes;
  return 0;
}

size_t pageferry_state_remaining(const pageferry_state_reader* reader) {
  return reader == nullptr ? 0 : reader->bytes.size() - reader->at;
}
}
