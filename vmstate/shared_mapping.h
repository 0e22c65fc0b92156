// SharedMapping: memory that two processes see at once (Boost.Interprocess mapped_region over a memfd), as words. The other process may
// write at any moment, or be gone; so words are only ever read and written one by one, atomically, and copied before they are looked at.
//
// The memory is sealed: it can neither shrink nor grow, so that a mapping of it never ends in SIGBUS.
//
// Thread rule: words any thread; the object itself one thread at a time. Owns the mapping, not the descriptor.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

class SharedMapping {
 public:
  enum class Access : std::uint8_t { read_only, read_write };
  // Maps `bytes` from the beginning on. Precondition: the descriptor was made or checked by sealed_memory.h to be that long.
  // Errors: io, no_space.
  static Result<SharedMapping> map(const UniqueFd& memory, std::uint64_t bytes, Access access);
  ~SharedMapping();
  SharedMapping(SharedMapping&& other) noexcept;
  SharedMapping& operator=(SharedMapping&& other) noexcept;

  std::size_t words() const { return words_; }
  // Preconditions: index < words() (checked); store and set_bits: read_write.
  std::uint64_t load(std::size_t index) const;
  void store(std::size_t index, std::uint64_t value);
  void set_bits(std::size_t index, std::uint64_t bits);

 private:
  struct Region;
  explicit SharedMapping(std::unique_ptr<Region> region);
  std::unique_ptr<Region> region_;
  std::uint64_t* data_ = nullptr;
  std::size_t words_ = 0;
};

}  // namespace pageferry
