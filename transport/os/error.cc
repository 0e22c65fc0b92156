// The mapping from errno to what the caller can do, in one table.
#include "transport/os/error.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pageferry {
namespace {

Errc errc_of(int error_number) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
      return Errc::no_space;
    case ENOENT:
      return Errc::not_found;
    case EEXIST:
      return Errc::exists;
    case EBUSY:
      return Errc::busy;
    case ESRCH:
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
      return Errc::gone;
    case EOPNOTSUPP:
    case ENOSYS:
      return Errc::unsupported;
    case ETIMEDOUT:
      return Errc::timeout;
    case ECANCELED:
      return Errc::canceled;
    default:
      return Errc::io;
  }
}

}  // namespace

std::string_view errc_name(Errc code) {
  switch (code) {
    case Errc::io:
      return "io";
    case Errc::no_space:
      return "no-space";
    case Errc::corrupt:
      return "corrupt";
    case Errc::not_owner:
      return "not-owner";
    case Errc::version:
      return "version";
    case Errc::busy:
      return "busy";
    case Errc::timeout:
      return "timeout";
    case Errc::canceled:
      return "canceled";
    case Errc::gone:
      return "gone";
    case Errc::vmm:
      return "vmm";
    case Errc::invalid:
      return "invalid";
    case Errc::unsupported:
      return "unsupported";
    case Errc::exists:
      return "exists";
    case Errc::not_found:
      return "not-found";
  }
  return "io";
}

Unexpected fail(Errc code, std::string message) {
  return Unexpected(Error{code, 0, std::move(message)});
}

Unexpected syscall_error(std::string_view call, std::string_view subject) {
  return syscall_error(call, subject, errno);
}

Unexpected syscall_error(std::string_view call, std::string_view subject, int error_number) {
  return Unexpected(Error{
      errc_of(error_number), error_number,
      fmt::format("{} {}: {} (errno {})", call, subject,
                  strerrordesc_np(error_number) ? strerrordesc_np(error_number) : "unknown error",
                  error_number)});
}

Unexpected with_context(Error error, std::string_view prefix) {
  error.message = fmt::format("{}: {}", prefix, error.message);
  return Unexpected(std::move(error));
}

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "pageferry: broken invariant: %s at %s:%d\n", condition, file, line);
  std::abort();
}

}  // namespace pageferry
