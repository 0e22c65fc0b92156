// The C interface: nothing but checks of arguments, errors as numbers, and a wall that no exception passes.
#include "tools/vmm_hook/pageferry_hook.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "tools/vmm_hook/hook_config.h"
#include "tools/vmm_hook/hook_server.h"
#include "tools/vmm_hook/hook_work.h"

struct pageferry_hook {
  std::unique_ptr<pageferry::HookWork> work;
  std::unique_ptr<pageferry::HookServer> server;  // ends before the work
};

namespace pageferry {
namespace {

static_assert(static_cast<int>(HookState::running) == PAGEFERRY_HOOK_RUNNING);
static_assert(static_cast<int>(HookState::moving) == PAGEFERRY_HOOK_MOVING);
static_assert(static_cast<int>(HookState::paused) == PAGEFERRY_HOOK_PAUSED);
static_assert(static_cast<int>(HookState::committed) == PAGEFERRY_HOOK_COMMITTED);
static_assert(static_cast<int>(HookState::incoming) == PAGEFERRY_HOOK_INCOMING);
static_assert(static_cast<int>(HookState::restoring) == PAGEFERRY_HOOK_RESTORING);
static_assert(static_cast<int>(HookState::moved_away) == PAGEFERRY_HOOK_MOVED_AWAY);

int negative_errno(const Error& error) {
  switch (error.code) {
    case Errc::invalid:
    case Errc::version:
      return -EINVAL;
    case Errc::exists:
      return -EADDRINUSE;
    case Errc::busy:
      return -EBUSY;
    case Errc::no_space:
      return -ENOMEM;
    case Errc::unsupported:
      return error.sys_errno == EPERM || error.sys_errno == EACCES ? -EPERM : -EOPNOTSUPP;
    default:
      return error.sys_errno != 0 ? -error.sys_errno : -EIO;
  }
}

void put_line(std::string_view line, char* error, std::size_t error_bytes) {
  if (error == nullptr || error_bytes == 0) return;
  const std::size_t length = std::min(line.size(), error_bytes - 1);
  std::memcpy(error, line.data(), length);
  error[length] = '\0';
}

Result<std::unique_ptr<pageferry_hook>> make_hook(const pageferry_hook_config* from) {
  PF_ASSIGN(HookConfig config, take_config(from));
  auto hook = std::make_unique<pageferry_hook>();
  PF_ASSIGN(hook->work, HookWork::make(std::move(config)));
  PF_ASSIGN(hook->server, HookServer::start(*hook->work));
  return hook;
}

// `call` returns Result<void>.
template <typename Call>
int as_number(Call call) {
  try {
    const Result<void> result = call();
    return result ? 0 : negative_errno(result.error());
  } catch (const std::exception&) {
    return -ENOMEM;
  }
}

}  // namespace
}  // namespace pageferry

extern "C" {

int pageferry_hook_start(const pageferry_hook_config* config, pageferry_hook** hook, char* error,
                         size_t error_bytes) {
  pageferry::put_line("", error, error_bytes);
  if (hook == nullptr) {
    pageferry::put_line("hook is NULL", error, error_bytes);
    return -EINVAL;
  }
  *hook = nullptr;
  try {
    auto made = pageferry::make_hook(config);
    if (!made) {
      pageferry::put_line(made.error().message, error, error_bytes);
      return pageferry::negative_errno(made.error());
    }
    *hook = made->release();
    return 0;
  } catch (const std::exception& thrown) {
    pageferry::put_line(thrown.what(), error, error_bytes);
    return -ENOMEM;
  }
}

int pageferry_hook_stop(pageferry_hook* hook) {
  if (hook == nullptr) return -EINVAL;
  if (hook->server->is_called_by_callback()) return -EDEADLK;
  const pageferry::IncomingMemory* const incoming = hook->work->incoming();
  if (incoming != nullptr && incoming->are_missing()) return -EBUSY;
  return pageferry::as_number([hook] {
    const std::unique_ptr<pageferry_hook> ends(hook);
    return ends->server->stop();
  });
}

int pageferry_hook_mark_dirty(pageferry_hook* hook, uint64_t guest_address, uint64_t size_bytes) {
  if (hook == nullptr) return -EINVAL;
  return pageferry::as_number([&] { return hook->work->mark_dirty(guest_address, size_bytes); });
}

int pageferry_hook_discard(pageferry_hook* hook, uint64_t guest_address, uint64_t size_bytes) {
  if (hook == nullptr) return -EINVAL;
  return pageferry::as_number([&] { return hook->work->discard(guest_address, size_bytes); });
}

enum pageferry_hook_state pageferry_hook_get_state(const pageferry_hook* hook) {
  if (hook == nullptr) return PAGEFERRY_HOOK_RUNNING;
  return static_cast<pageferry_hook_state>(hook->server->state());
}
}
