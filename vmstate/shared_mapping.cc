// The one place that knows Boost.Interprocess. Its exceptions end here.
#include "vmstate/shared_mapping.h"

#include <boost/interprocess/mapped_region.hpp>
#include <new>
#include <utility>

namespace pageferry {
namespace {

// What mapped_region asks of a thing that it maps.
struct Mappable {
  boost::interprocess::mapping_handle_t handle{};
  boost::interprocess::mapping_handle_t get_mapping_handle() const { return handle; }
};

}  // namespace

struct SharedMapping::Region {
  boost::interprocess::mapped_region mapped;
};

Result<SharedMapping> SharedMapping::map(const UniqueFd& memory, std::uint64_t bytes,
                                         Access access) {
  namespace ipc = boost::interprocess;
  try {
    Mappable mappable;
    mappable.handle.handle = memory.get();
    mappable.handle.is_xsi = false;
    auto region = std::make_unique<Region>();
    region->mapped = ipc::mapped_region(
        mappable, access == Access::read_only ? ipc::read_only : ipc::read_write, 0, bytes);
    return SharedMapping(std::move(region));
  } catch (const ipc::interprocess_exception& error) {
    return syscall_error("mmap", "shared segment", error.get_native_error());
  } catch (const std::bad_alloc&) {
    return fail(Errc::no_space, "shared segment: no memory");
  }
}

SharedMapping::SharedMapping(std::unique_ptr<Region> region)
    : region_(std::move(region)),
      data_(static_cast<std::uint64_t*>(region_->mapped.get_address())),
      words_(region_->mapped.get_size() / sizeof(std::uint64_t)) {}

SharedMapping::~SharedMapping() = default;
SharedMapping::SharedMapping(SharedMapping&& other) noexcept = default;
SharedMapping& SharedMapping::operator=(SharedMapping&& other) noexcept = default;

std::uint64_t SharedMapping::load(std::size_t index) const {
  PF_CHECK(index < words_);
  return std::atomic_ref(data_[index]).load(std::memory_order_acquire);
}

void SharedMapping::store(std::size_t index, std::uint64_t value) {
  PF_CHECK(index < words_);
  std::atomic_ref(data_[index]).store(value, std::memory_order_release);
}

void SharedMapping::set_bits(std::size_t index, std::uint64_t bits) {
  PF_CHECK(index < words_);
  std::atomic_ref(data_[index]).fetch_or(bits);
}

}  // namespace pageferry
