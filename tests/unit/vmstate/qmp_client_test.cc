// QmpClient against a fake monitor: replies, events, descriptors, and every way a monitor can be
// wrong, busy or dead.
#include "vmstate/qmp_client.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <condition_variable>
#include <fstream>

#include "fakes/fake_qmp_server.h"
#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing_support::FakeQmpServer;
using testing_support::qmp_error;
using testing_support::qmp_return;
using testing_support::ScratchDirectory;

class QmpClientTest : public testing::Test {
 protected:
  Deadline soon() const { return Deadline::after(clock_, Seconds(20)); }
  Deadline almost_now() const { return Deadline::after(clock_, Milliseconds(50)); }

  std::unique_ptr<QmpClient> connected() {
    auto client = QmpClient::connect(path_, soon());
    if (!client) {
      ADD_FAILURE() << client.error().message;
      return nullptr;
    }
    return std::move(*client);
  }

  static std::optional<json> empty_reply(FakeQmpServer::Command&) { return qmp_return(); }

  MonotonicClock clock_;
  ScratchDirectory directory_;
  std::string path_ = directory_.file("qmp");
};

TEST_F(QmpClientTest, ReadsVersionAndPeerAtConnect) {
  FakeQmpServer server(path_, empty_reply);
  const auto client = connected();
  EXPECT_EQ(client->qemu_version(), 70222);
  EXPECT_EQ(client->peer().pid, ::getpid());
  EXPECT_EQ(client->peer().uid, ::getuid());
  EXPECT_EQ(client->socket_path(), path_);
  EXPECT_TRUE(client->unbroken());
}

TEST_F(QmpClientTest, ReturnsWhatTheCommandReturned) {
  FakeQmpServer server(path_, [](FakeQmpServer::Command& command) {
    return qmp_return({{"command", command.name}, {"arguments", command.arguments}});
  });
  const auto client = connected();
  const auto reply = client->execute("query-thing", {{"id", 7}}, soon());
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ((*reply)["command"], "query-thing");
  EXPECT_EQ((*reply)["arguments"]["id"], 7);
}

TEST_F(QmpClientTest, KeepsEventsThatArriveBetweenReplies) {
  FakeQmpServer* running = nullptr;
  FakeQmpServer server(path_, [&running](FakeQmpServer::Command&) {
    running->send_event("STOP");
    running->send_event("MIGRATION", {{"status", "setup"}});
    return qmp_return();
  });
  running = &server;
  const auto client = connected();
  ASSERT_TRUE(client->execute("stop", json::object(), soon()));
  const auto first = client->wait_event(soon());
  const auto second = client->wait_event(soon());
  ASSERT_TRUE(first && *first && second && *second);
  EXPECT_EQ((**first)["event"], "STOP");
  EXPECT_EQ((**second)["data"]["status"], "setup");
}

TEST_F(QmpClientTest, WaitEventEndsEmptyAtTheDeadline) {
  FakeQmpServer server(path_, empty_reply);
  const auto client = connected();
  const auto event = client->wait_event(almost_now());
  ASSERT_TRUE(event) << event.error().message;
  EXPECT_FALSE(*event);
  EXPECT_TRUE(client->unbroken());
}

TEST_F(QmpClientTest, GivesQemusOwnWordsWhenACommandFails) {
  FakeQmpServer server(path_,
                       [](FakeQmpServer::Command&) { return qmp_error("Device 'x' not found"); });
  const auto client = connected();
  const auto reply = client->execute("device_del", {{"id", "x"}}, soon());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::vmm);
  EXPECT_EQ(reply.error().message, "QMP device_del: GenericError: Device 'x' not found");
  EXPECT_TRUE(client->unbroken());
  EXPECT_TRUE(client->execute("query-status", {}, soon()).error().code == Errc::vmm)
      << "the connection lives on";
}

TEST_F(QmpClientTest, PassesADescriptorAndKeepsItsOwn) {
  ScratchDirectory files;
  ino_t received = 0;
  FakeQmpServer server(path_, [&received](FakeQmpServer::Command& command) -> std::optional<json> {
    if (command.fds.size() != 1) return qmp_error("want one descriptor");
    struct stat status {};
    ::fstat(command.fds[0].get(), &status);
    received = status.st_ino;
    return qmp_return();
  });
  const auto client = connected();
  std::ofstream(files.file("x")) << "x";
  const UniqueFd fd(::open(files.file("x").c_str(), O_RDONLY | O_CLOEXEC));
  const auto reply = client->execute_with_fd("getfd", {{"fdname", "m"}}, fd.get(), soon());
  ASSERT_TRUE(reply) << reply.error().message;
  struct stat status {};
  ASSERT_EQ(::fstat(fd.get(), &status), 0) << "our copy must stay open";
  EXPECT_EQ(received, status.st_ino);
}

TEST_F(QmpClientTest, SecondClientIsToldThatAnotherHoldsTheMonitor) {
  FakeQmpServer server(path_, empty_reply);
  const auto holder = connected();
  const auto second = QmpClient::connect(path_, almost_now());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::busy);
  EXPECT_THAT(second.error().message, HasSubstr("another client holds it"));
}

TEST_F(QmpClientTest, ClientsBeyondTheBacklogAreToldTheSame) {
  FakeQmpServer server(path_, empty_reply);
  const auto holder = connected();
  std::vector<UniqueFd> waiting;
  for (int i = 0; i < 4; ++i) {  // a backlog of 1 admits two
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
    std::ignore = ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
    waiting.push_back(std::move(fd));
  }
  const auto one_more = QmpClient::connect(path_, almost_now());
  ASSERT_FALSE(one_more);
  EXPECT_EQ(one_more.error().code, Errc::busy);
}

TEST_F(QmpClientTest, MissingSocketIsNotFound) {
  const auto client = QmpClient::connect(path_, soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Errc::not_found);
  EXPECT_THAT(client.error().message, HasSubstr(path_));
}

TEST_F(QmpClientTest, SocketNobodyListensOnIsGone) {
  {
    const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
    ASSERT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  const auto client = QmpClient::connect(path_, soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Errc::gone);
  EXPECT_THAT(client.error().message, HasSubstr("nobody listens"));
}

TEST_F(QmpClientTest, OrdinaryFileIsNoSocket) {
  std::ofstream(path_) << "x";
  const auto client = QmpClient::connect(path_, soon());
  ASSERT_FALSE(client);
  EXPECT_THAT(client.error().message, HasSubstr(path_));
}

TEST_F(QmpClientTest, TooLongPathNamesTheLimit) {
  const auto client = QmpClient::connect(std::string(200, 'p'), soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Errc::invalid);
  EXPECT_THAT(client.error().message, HasSubstr("200 bytes, must have 1 to 107"));
}

TEST_F(QmpClientTest, HumanMonitorIsNamedAsTheWrongServer) {
  FakeQmpServer server(path_, empty_reply,
                       "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ");
  const auto client = QmpClient::connect(path_, soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Errc::vmm);
  EXPECT_THAT(client.error().message, HasSubstr("no QMP server: it says \"QEMU 7.2.22 monitor"));
}

TEST_F(QmpClientTest, PromptWithoutNewlineIsNotWaitedOn) {
  FakeQmpServer server(path_, empty_reply, "login: ");
  const auto client = QmpClient::connect(path_, soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Errc::vmm);
}

TEST_F(QmpClientTest, GreetingWithoutAVersionIsNoQmpServer) {
  FakeQmpServer server(path_, empty_reply, "{\"QMP\": {\"version\": {}}}\r\n");
  const auto client = QmpClient::connect(path_, soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Errc::vmm);
}

// Seen with QEMU 10: what happens between its accept() and its greeting comes first.
TEST_F(QmpClientTest, AnEventBeforeTheGreetingIsNotTakenForAnotherServer) {
  const std::string event =
      "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"MIGRATION\", "
      "\"data\": {\"status\": \"active\"}}\r\n";
  FakeQmpServer server(path_, empty_reply, event + FakeQmpServer::qemu_greeting());
  const auto client = connected();
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(client->qemu_version(), 70222);
  const auto kept = client->wait_event(almost_now());
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_FALSE(kept->has_value()) << "nobody may count on what came before the greeting";
}

TEST_F(QmpClientTest, MalformedLineEndsTheConnectionAndSaysWhatItWas) {
  FakeQmpServer* running = nullptr;
  FakeQmpServer server(path_, [&running](FakeQmpServer::Command&) -> std::optional<json> {
    running->send_raw("{\"return\": \r\n");
    return std::nullopt;
  });
  running = &server;
  const auto client = connected();
  const auto reply = client->execute("query-status", {}, soon());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::vmm);
  EXPECT_THAT(reply.error().message, HasSubstr("no JSON object"));
  EXPECT_FALSE(client->unbroken());
}

TEST_F(QmpClientTest, UnaskedReplyEndsTheConnection) {
  FakeQmpServer server(path_, [](FakeQmpServer::Command&) -> std::optional<json> {
    return json{{"return", json::object()}, {"id", 999}};
  });
  const auto client = connected();
  const auto reply = client->execute("query-status", {}, soon());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::vmm);
  EXPECT_THAT(reply.error().message, HasSubstr("nobody asked for"));
}

TEST_F(QmpClientTest, EndlessLineIsCutAtTheLimit) {
  FakeQmpServer* running = nullptr;
  FakeQmpServer server(path_, [&running](FakeQmpServer::Command&) -> std::optional<json> {
    const std::string part(std::size_t{1} << 20, 'x');
    running->send_raw("{\"return\": \"");
    for (int i = 0; i < 33; ++i) running->send_raw(part);
    return std::nullopt;
  });
  running = &server;
  const auto client = connected();
  const auto reply = client->execute("query-status", {}, soon());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::vmm);
  EXPECT_THAT(reply.error().message, HasSubstr("33554432 bytes"));
}

TEST_F(QmpClientTest, DeathOfQemuInACommandIsGoneAndEventsBeforeItCanStillBeTaken) {
  FakeQmpServer* running = nullptr;
  FakeQmpServer server(path_, [&running](FakeQmpServer::Command&) -> std::optional<json> {
    running->send_event("SHUTDOWN");
    running->close_client();
    return std::nullopt;
  });
  running = &server;
  const auto client = connected();
  const auto reply = client->execute("system_powerdown", {}, soon());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::gone);
  EXPECT_FALSE(client->unbroken());
  const auto event = client->wait_event(soon());
  ASSERT_TRUE(event && *event);
  EXPECT_EQ((**event)["event"], "SHUTDOWN");
  const auto none = client->wait_event(soon());
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::gone);
}

TEST_F(QmpClientTest, TimedOutCommandClosesTheConnectionBecauseItsOutcomeIsUnknown) {
  FakeQmpServer server(path_,
                       [](FakeQmpServer::Command&) -> std::optional<json> { return std::nullopt; });
  const auto client = connected();
  const auto reply = client->execute("cont", {}, almost_now());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::timeout);
  EXPECT_FALSE(client->unbroken());
  const auto next = client->execute("query-status", {}, soon());
  ASSERT_FALSE(next);
  EXPECT_THAT(next.error().message, HasSubstr("not sent"));
}

TEST_F(QmpClientTest, ArgumentsThatAreNotUtf8AreRefusedBeforeSending) {
  FakeQmpServer server(path_, empty_reply);
  const auto client = connected();
  const auto reply = client->execute("x", {{"path", "\xff"}}, soon());
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::invalid);
  EXPECT_TRUE(client->unbroken());
  EXPECT_TRUE(client->execute("x", {}, soon())) << "the connection is usable after the refusal";
}

TEST_F(QmpClientTest, ThreadsGetTheirOwnAnswers) {
  FakeQmpServer server(
      path_, [](FakeQmpServer::Command& command) { return qmp_return(command.arguments["n"]); });
  const auto client = connected();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const auto reply = client->execute("echo", {{"n", t * 1000 + i}}, soon());
        if (!reply || *reply != t * 1000 + i) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace pageferry
