// Whatever an answer's outcome, the page is woken: who waits asks again if it still has to. So an answer that fails for a moment (the
// address space is changing) is made again by the one who needs it, and one that fails for good (no memory) slows that one down and
// nobody else.
#include "pager/hole_service.h"

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>

#include "transport/os/signals_blocked.h"

namespace pageferry {
namespace {

constexpr std::size_t kHolesPerRead = 16;

}  // namespace

Result<std::unique_ptr<HoleService>> HoleService::start(int userfault,
                                                        const std::vector<Range>& ranges) {
  std::unique_ptr<HoleService> service(new HoleService(userfault));
  const SignalsBlocked none_for_the_thread;
  try {
    service->thread_ = std::thread([self = service.get()] { self->run(); });
  } catch (const std::system_error& error) {
    return fail(Errc::no_space, fmt::format("no thread for page faults: {}", error.what()));
  }
  for (const Range& range : ranges) {
    uffdio_range all{.start = range.address, .len = range.bytes};
    if (::ioctl(userfault, UFFDIO_WAKE, &all) == 0) continue;
    Unexpected reason = syscall_error("UFFDIO_WAKE", fmt::format("{:#x}", range.address));
    reason.value().code = Errc::vmm;
    return reason;
  }
  return service;
}

HoleService::~HoleService() {
  stop_.cancel();
  if (thread_.joinable()) thread_.join();
}

void HoleService::run() {
  std::array<pollfd, 2> entries = {pollfd{.fd = userfault_, .events = POLLIN, .revents = 0},
                                   pollfd{.fd = stop_.fd(), .events = POLLIN, .revents = 0}};
  while (!stop_.canceled()) {
    if (::poll(entries.data(), entries.size(), -1) > 0 && entries[0].revents != 0) answer_all();
  }
}

void HoleService::wake(std::uint64_t page_address) {
  uffdio_range page{.start = page_address, .len = kPageSizeBytes};
  static_cast<void>(::ioctl(userfault_, UFFDIO_WAKE, &page));
}

void HoleService::answer_all() {
  std::array<uffd_msg, kHolesPerRead> messages;
  const ssize_t got = ::read(userfault_, messages.data(), sizeof messages);
  if (got <= 0) return;
  const std::size_t count = static_cast<std::size_t>(got) / sizeof(uffd_msg);
  for (std::size_t i = 0; i < count; ++i) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
    const std::uint64_t page = messages[i].arg.pagefault.address / kPageSizeBytes * kPageSizeBytes;
    if ((messages[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
      uffdio_writeprotect request{.range = {.start = page, .len = kPageSizeBytes}, .mode = 0};
      static_cast<void>(::ioctl(userfault_, UFFDIO_WRITEPROTECT, &request));
    } else {
      uffdio_copy request{.dst = page,
                          .src = reinterpret_cast<std::uintptr_t>(zeros_.data()),
                          .len = kPageSizeBytes,
                          .mode = 0,
                          .copy = 0};
      static_cast<void>(::ioctl(userfault_, UFFDIO_COPY, &request));
    }
    wake(page);
  }
}

}  // namespace pageferry
