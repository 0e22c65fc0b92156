// DemoProcess: a demo_vmm program in a process of its own, and the words with it over its control socket.
//
// Thread rule: one thread, the test's. Lifetime: a process that still runs is killed on destruction.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "transport/message_channel.h"
#include "vmstate/local_socket.h"

namespace pageferry::testing_support {

class DemoProcess {
 public:
  // `words`: the command line, program first; --hook and its socket are among them. Returns when the VMM can be spoken to.
  explicit DemoProcess(std::vector<std::string> words) {
    for (std::size_t i = 0; i + 1 < words.size(); ++i) {
      if (words[i] == "--hook") hook_path_ = words[i + 1];
    }
    for (const char* word : {"--json", "--status-interval-ms", "20"}) words.emplace_back(word);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    out_.reset(ends[0]);
    const UniqueFd write_end(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(write_end.get(), STDOUT_FILENO);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    // Its first status line comes when its sockets are there. The pipe is read no further: lines that nobody wants must not fill it.
    char first = 0;
    EXPECT_EQ(::read(out_.get(), &first, 1), 1) << "demo_vmm did not start";
    drain_ = std::thread([fd = out_.get()] {
      std::array<char, 4'096> ignored;
      while (::read(fd, ignored.data(), ignored.size()) > 0) {
      }
    });
  }
  ~DemoProcess() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    exit_code();
    drain_.join();
  }
  DemoProcess(const DemoProcess&) = delete;
  DemoProcess& operator=(const DemoProcess&) = delete;

  const std::string& hook_path() const { return hook_path_; }

  nlohmann::json ask(const nlohmann::json& request) const {
    const MonotonicClock clock;
    const Deadline deadline = Deadline::after(clock, Seconds(60));
    auto connection = connect_to(hook_path_ + ".control", SOCK_STREAM, deadline);
    if (!connection) return {{"error-desc", connection.error().message}};
    UniqueFd reading(::dup(connection->get()));
    MessageChannel channel(std::move(reading), std::move(*connection));
    EXPECT_TRUE(channel.send(request));
    auto reply = channel.receive(deadline);
    if (reply && *reply) return **reply;
    ADD_FAILURE() << "no answer to " << request;
    return {};
  }
  nlohmann::json status() const { return ask({{"type", "status"}}); }
  nlohmann::json check() const { return ask({{"type", "check"}}); }

  // Waits for its end. -1: a signal ended it.
  int exit_code() {
    if (pid_ < 0) return exit_code_;
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return exit_code_;
  }

 private:
  std::string hook_path_;
  UniqueFd out_;
  pid_t pid_ = -1;
  int exit_code_ = -1;
  std::thread drain_;
};

}  // namespace pageferry::testing_support
