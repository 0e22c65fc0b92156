// posix_spawn, because a fork would copy the page tables of a whole guest. The pager gets no descriptor of the VMM's but its standard
// output and error, default signals, and a session of its own, so that it outlives the VMM's terminal. It is a child of the VMM; the
// watchdog waits for it by its number, and does not mind when the VMM has done so before.
#include "tools/vmm_hook/pager_watchdog.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <string_view>

namespace pageferry {
namespace {

constexpr Seconds kBetweenStarts{1};
constexpr Milliseconds kBetweenLooks{100};
constexpr std::string_view kSocketWord = "{socket}";

// -1 when it cannot be started.
pid_t start_process(const std::vector<std::string>& command) {
  std::vector<char*> words;
  words.reserve(command.size() + 1);
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  if (::posix_spawn_file_actions_init(&files) != 0) return -1;
  if (::posix_spawnattr_init(&attributes) != 0) {
    ::posix_spawn_file_actions_destroy(&files);
    return -1;
  }
  sigset_t signals;
  ::sigemptyset(&signals);
  ::posix_spawnattr_setsigmask(&attributes, &signals);
  ::sigfillset(&signals);
  ::posix_spawnattr_setsigdefault(&attributes, &signals);
  ::posix_spawnattr_setflags(
      &attributes,
      static_cast<short>(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID));
  pid_t process = -1;
  const bool started =
      ::posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0) == 0 &&
      ::posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1) == 0 &&
      ::posix_spawnp(&process, words[0], &files, &attributes, words.data(), environ) == 0;
  ::posix_spawn_file_actions_destroy(&files);
  ::posix_spawnattr_destroy(&attributes);
  return started ? process : -1;
}

}  // namespace

PagerWatchdog::PagerWatchdog(std::vector<std::string> command, const std::string& socket_path)
    : command_(std::move(command)) {
  for (std::string& word : command_) {
    for (std::size_t at = 0; (at = word.find(kSocketWord, at)) != std::string::npos;
         at += socket_path.size()) {
      word.replace(at, kSocketWord.size(), socket_path);
    }
  }
}

bool PagerWatchdog::is_running() {
  if (pager_ < 0) return false;
  const pid_t ended = ::waitpid(pager_, nullptr, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return true;
  pager_ = -1;
  return false;
}

void PagerWatchdog::look(Nanoseconds now, const IncomingMemory* memory) {
  if (!due_at_ || now < *due_at_) return;
  if (memory == nullptr || !memory->are_missing()) {
    due_at_.reset();
    return;
  }
  if (is_running()) {
    due_at_ = now + kBetweenLooks;
    return;
  }
  const std::uint64_t there = memory->bytes_there();
  if (there != bytes_there_) starts_in_a_row_ = 0;
  bytes_there_ = there;
  if (starts_in_a_row_ >= kStartsMax) {
    due_at_.reset();
    return;
  }
  ++starts_in_a_row_;
  pager_ = start_process(command_);
  due_at_ = now + kBetweenStarts;
}

}  // namespace pageferry
