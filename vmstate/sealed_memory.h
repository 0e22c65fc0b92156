// Memory that is passed to another process as a descriptor: a memfd whose seals say what can no longer happen to it (memfd_create(2),
// F_ADD_SEALS in fcntl(2)). Whoever is given one checks the seals before use; then nothing the giver does can hurt.
//
// Thread rule: functions without state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

// `size`: it keeps its size. `content`: nor is it ever written again.
enum class Sealed : std::uint8_t { size, content };

// Zeros, of a fixed size. `name` is for /proc. Errors: no_space, io.
Result<UniqueFd> make_sealed_memory(const char* name, std::uint64_t bytes);
// With this content, for good.
Result<UniqueFd> make_sealed_memory(const char* name, std::span<const std::byte> content);

// Nobody can map or write it for writing any more, but for mappings that are there already. Needs Linux 5.1.
Result<void> seal_for_other_writers(const UniqueFd& memory);

// A descriptor of the same memory through which it cannot be written. Errors: io, unsupported (no /proc).
Result<UniqueFd> reopen_read_only(const UniqueFd& memory);

// `what` begins the error's line. Errors: invalid (no memfd, the seals are missing, another size).
Result<void> check_sealed_memory(std::string_view what, const UniqueFd& memory, std::uint64_t bytes,
                                 Sealed sealed);
// The whole content. Precondition: check_sealed_memory() with Sealed::content. Errors: io.
Result<std::vector<std::byte>> read_sealed_memory(const UniqueFd& memory, std::uint64_t bytes);

}  // namespace pageferry
