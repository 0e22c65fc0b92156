// Errors as values. Every fallible function returns Result<T>; no exception leaves a folder.
//
// An Errc says what the caller can do next, not which call failed; the message says the rest in one
// line: the thing, the value, the limit, and, where there is one, the path, offset, page or epoch.
//
// Thread rule: values, freely copied between threads.
#pragma once

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace pageferry {

enum class Errc {
  io,         // the storage or socket failed; what was written to it since the last sync is unknown
  no_space,   // the store is full or over quota; free space, nothing else is wrong
  corrupt,    // bytes were read, but they are not what was written; never use them
  not_owner,  // somebody else holds the epoch; leave the guest alone
  version,    // made by a newer or foreign program; refuse
  busy,       // somebody else uses the thing now; try later
  timeout,    // the deadline passed; the outcome may be unknown
  canceled,   // we were asked to stop
  gone,       // the peer, process or mapping has ended
  vmm,        // the VMM refused or failed; its own words are in the message
  invalid,    // input from a user, file or peer is wrong; correct it
  unsupported,  // this kernel, VMM or file system cannot do it
  exists,       // the exclusive name is taken
  not_found,    // the named thing is not there
};

// The stable, lower-case name of a code, for `error-class` in JSON.
std::string_view errc_name(Errc code);

struct [[nodiscard]] Error {
  Errc code = Errc::io;
  int sys_errno = 0;  // 0 when no system call was involved
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;

using Unexpected = tl::unexpected<Error>;

// An Error without errno.
Unexpected fail(Errc code, std::string message);

// The one place that reads errno; call it first after the failing call. ENOSPC/EDQUOT give
// no_space, ENOENT not_found, EEXIST exists, EBUSY busy, ESRCH/EPIPE/ECONNRESET gone,
// EOPNOTSUPP/ENOSYS unsupported, the rest io. Message: "<call> <subject>: <strerror> (errno N)".
Unexpected syscall_error(std::string_view call, std::string_view subject);
// The same for a call that returns its error number (libaio returns -errno: pass it negated).
Unexpected syscall_error(std::string_view call, std::string_view subject, int error_number);

// Puts "<prefix>: " before the message and keeps the code: for adding context on the way up.
Unexpected with_context(Error error, std::string_view prefix);

}  // namespace pageferry

// Returns the error of a Result<void>-like expression from the enclosing function.
#define PF_TRY(expression)                                                              \
  do {                                                                                  \
    auto pf_try_result = (expression);                                                  \
    if (!pf_try_result) return ::tl::make_unexpected(std::move(pf_try_result).error()); \
  } while (false)

#define PF_TRY_CONCAT_INNER(a, b) a##b
#define PF_TRY_CONCAT(a, b) PF_TRY_CONCAT_INNER(a, b)
// PF_ASSIGN(auto x, f()): declares x from the value, or returns the error.
#define PF_ASSIGN(declaration, expression) \
  PF_ASSIGN_INNER(PF_TRY_CONCAT(pf_assign_, __LINE__), declaration, expression)
// NOLINTBEGIN(bugprone-macro-parentheses): the name and the declaration are declared here; parentheses would not compile.
#define PF_ASSIGN_INNER(name, declaration, expression)              \
  auto name = (expression);                                         \
  if (!name) return ::tl::make_unexpected(std::move(name).error()); \
  declaration = std::move(*name)
// NOLINTEND(bugprone-macro-parentheses)

// A broken invariant of our own: abort in every build, with the place and the condition.
#define PF_CHECK(condition)           \
  ((condition) ? static_cast<void>(0) \
               : ::pageferry::check_failed(#condition, __builtin_FILE(), __builtin_LINE()))

namespace pageferry {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}
