// GuestWrites: who wants to know what this VMM does to guest memory besides running vCPUs: the hook's glue, during a move.
//
// Thread rule: any thread; the calls do not block. Called after the write or the hole.
#pragma once

#include <cstdint>

namespace pageferry::demo {

class GuestWrites {
 public:
  virtual ~GuestWrites() = default;
  virtual void written(std::uint64_t guest_address, std::uint64_t bytes) = 0;
  virtual void given_back(std::uint64_t guest_address, std::uint64_t bytes) = 0;
};

}  // namespace pageferry::demo
