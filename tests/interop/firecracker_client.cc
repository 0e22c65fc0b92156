// firecracker_client SOCKET PAGES PAGE_BYTES BEHAVIOUR: what Firecracker does when it restores a snapshot with the memory backend `Uffd`,
// written from its description and without a line of the program under test. Maps its memory, registers it with a userfaultfd that tells
// removals, sends the regions and the descriptor in one message, and then uses the memory as a guest does. It knows what each page must hold
// (memory_pattern.h) and checks it itself.
//
//   verify        all pages, four threads, each in an order of its own
//   close-early   the same, with the connection closed after the message, as older versions do
//   balloon       the same, while memory is given back and used again; once more after a line on stdin
//   vanish        uses a few pages and ends
//   wait          uses a few pages, says so, and waits for the end of stdin
//   silent garbage no-fd two-fds overlap beyond
//                 is refused: waits until the connection is closed, and shows that its memory is its own
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "interop/memory_pattern.h"

namespace {

using memory_pattern::kPageBytes;
using memory_pattern::kWords;
using memory_pattern::Page;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "client: %s: %s\n", what, std::strerror(errno));
  std::exit(3);
}

struct Region {
  char* at = nullptr;
  std::uint64_t first = 0;  // page of the memory file
  std::uint64_t pages = 0;
};

class Guest {
 public:
  Guest(std::uint64_t pages, std::size_t page_bytes) : page_bytes_(page_bytes) {
    open_userfault();
    const std::uint64_t unit = page_bytes / kPageBytes;
    const std::uint64_t low = pages * 5 / 8 / unit * unit;
    add_region(0, low);
    add_region(low, pages - low);
  }

  std::uint64_t pages() const { return regions_.back().first + regions_.back().pages; }
  int userfault() const { return userfault_; }
  char* address(std::uint64_t page) const {
    const Region& region = page < regions_[1].first ? regions_[0] : regions_[1];
    return region.at + (page - region.first) * kPageBytes;
  }
  Page read(std::uint64_t page) const {
    Page words;
    std::memcpy(words.data(), address(page), sizeof words);
    return words;
  }
  // The balloon's part: the end of the first region.
  std::uint64_t balloon_first() const { return regions_[0].pages / 4 * 3 / unit() * unit(); }
  std::uint64_t balloon_end() const { return regions_[0].pages; }
  std::uint64_t unit() const { return page_bytes_ / kPageBytes; }

  std::string message() const {
    std::string text = "[";
    for (const Region& region : regions_) {
      if (text.size() > 1) text += ",";
      const std::string size = std::to_string(page_bytes_);
      text += "{\"base_host_virt_addr\":" +
              std::to_string(reinterpret_cast<std::uintptr_t>(region.at)) +
              ",\"size\":" + std::to_string(region.pages * kPageBytes) +
              ",\"offset\":" + std::to_string(region.first * kPageBytes) +
              ",\"page_size\":" + size + ",\"page_size_kib\":" + size + "}";
    }
    return text + "]";
  }

 private:
  void open_userfault() {
    const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
      userfault_ = ::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
      ::close(device);
    }
    if (userfault_ < 0) {
      userfault_ = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    }
    if (userfault_ < 0) die("userfaultfd");
    uffdio_api api{.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE, .ioctls = 0};
    if (::ioctl(userfault_, UFFDIO_API, &api) != 0) die("UFFDIO_API");
  }
  void add_region(std::uint64_t first, std::uint64_t pages) {
    const int huge = page_bytes_ > kPageBytes ? MAP_HUGETLB : MAP_NORESERVE;
    void* const at = ::mmap(nullptr, pages * kPageBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | huge, -1, 0);
    if (at == MAP_FAILED) die("mmap");
    uffdio_register request{
        .range = {.start = reinterpret_cast<std::uintptr_t>(at), .len = pages * kPageBytes},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
        .ioctls = 0};
    if (::ioctl(userfault_, UFFDIO_REGISTER, &request) != 0) die("UFFDIO_REGISTER");
    regions_.push_back({.at = static_cast<char*>(at), .first = first, .pages = pages});
  }

  std::size_t page_bytes_;
  int userfault_ = -1;
  std::vector<Region> regions_;
};

int connect_to(const char* path) {
  const int connection = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  if (::connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    die("connect");
  return connection;
}

void send_message(int connection, std::string text, const std::vector<int>& descriptors) {
  alignas(cmsghdr) std::array<char, 256> control{};
  iovec part{.iov_base = text.data(), .iov_len = text.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
  }
  if (::sendmsg(connection, &message, 0) != static_cast<ssize_t>(text.size())) die("sendmsg");
}

std::atomic<int> wrong_pages{0};

void expect_page(std::uint64_t page, const Page& found, const Page& expected, const char* what) {
  if (found == expected) return;
  std::size_t word = 0;
  while (found[word] == expected[word]) ++word;
  std::printf("WRONG page %llu word %zu: %llx instead of %llx, %s\n",
              static_cast<unsigned long long>(page), word,
              static_cast<unsigned long long>(found[word]),
              static_cast<unsigned long long>(expected[word]), what);
  std::fflush(stdout);
  ++wrong_pages;
}

// Every page but the balloon's, each thread in an order of its own.
void verify_some(const Guest& guest, std::uint64_t seed, std::uint64_t skip_from,
                 std::uint64_t skip_to) {
  std::vector<std::uint64_t> order;
  for (std::uint64_t page = 0; page < guest.pages(); ++page) {
    if (page < skip_from || page >= skip_to) order.push_back(page);
  }
  std::mt19937_64 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  for (const std::uint64_t page : order) {
    expect_page(page, guest.read(page), memory_pattern::page_of(page), "as restored");
  }
}

std::vector<std::thread> verifiers(const Guest& guest, std::uint64_t skip_from,
                                   std::uint64_t skip_to) {
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back(
        [&guest, seed, skip_from, skip_to] { verify_some(guest, seed, skip_from, skip_to); });
  }
  return threads;
}

// What the balloon's pages hold now: `expected` is nobody else's to change.
class Balloon {
 public:
  explicit Balloon(const Guest& guest) : guest_(guest) {
    for (std::uint64_t page = guest.balloon_first(); page < guest.balloon_end(); ++page) {
      expected_.push_back(memory_pattern::page_of(page));
    }
  }
  void blow(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      const std::uint64_t units = expected_.size() / guest_.unit();
      const std::uint64_t from = random_() % units;
      const std::uint64_t count = 1 + random_() % std::min<std::uint64_t>(units - from, 96);
      remove(from * guest_.unit(), count * guest_.unit());
    }
  }
  void verify() const {
    for (std::uint64_t i = 0; i < expected_.size(); ++i) {
      const std::uint64_t page = guest_.balloon_first() + i;
      expect_page(page, guest_.read(page), expected_[i], "in the balloon's part");
    }
  }
  std::uint64_t removed() const { return removed_; }

 private:
  // Every third page is left alone afterwards, every third read at once, every third written at once.
  void remove(std::uint64_t from, std::uint64_t count) {
    char* const at = guest_.address(guest_.balloon_first() + from);
    if (::madvise(at, count * kPageBytes, MADV_DONTNEED) != 0) die("madvise");
    removed_ += count;
    for (std::uint64_t i = from; i < from + count; ++i) {
      const std::uint64_t page = guest_.balloon_first() + i;
      expected_[i] = Page{};
      if (random_() % 3 == 0) expect_page(page, guest_.read(page), expected_[i], "just removed");
      if (random_() % 3 == 0) {
        expected_[i].fill(random_());
        std::memcpy(guest_.address(page), expected_[i].data(), kPageBytes);
      }
    }
  }
  const Guest& guest_;
  std::vector<Page> expected_;
  std::mt19937_64 random_{42};
  std::uint64_t removed_ = 0;
};

int report(std::uint64_t pages, std::uint64_t removed) {
  std::printf("verified %llu pages, %llu removed, %d wrong\n",
              static_cast<unsigned long long>(pages), static_cast<unsigned long long>(removed),
              wrong_pages.load());
  return wrong_pages == 0 ? 0 : 1;
}

int verify_all(const Guest& guest) {
  for (std::thread& thread : verifiers(guest, 0, 0)) thread.join();
  return report(guest.pages(), 0);
}

void wait_for_stdin() {
  char line[16];
  [[maybe_unused]] const char* const read = std::fgets(line, sizeof line, stdin);
}

int use_balloon(const Guest& guest) {
  Balloon balloon(guest);
  std::vector<std::thread> threads = verifiers(guest, guest.balloon_first(), guest.balloon_end());
  balloon.blow(200);
  for (std::thread& thread : threads) thread.join();
  std::printf("first part done\n");
  std::fflush(stdout);
  wait_for_stdin();
  balloon.blow(200);
  balloon.verify();
  verify_some(guest, 7, guest.balloon_first(), guest.balloon_end());
  return report(guest.pages(), balloon.removed());
}

int touch_a_few(const Guest& guest) {
  for (std::uint64_t page = 0; page < guest.pages(); page += guest.pages() / 16) {
    expect_page(page, guest.read(page), memory_pattern::page_of(page), "one of a few");
  }
  return report(16, 0);
}

// Refused: the memory is still there, and its userfaultfd serves it.
int show_that_unharmed(const Guest& guest, int connection) {
  char byte = 0;
  if (::recv(connection, &byte, 1, 0) != 0) die("the connection is not closed");
  const Page words = memory_pattern::page_of(0);
  uffdio_copy copy{.dst = reinterpret_cast<std::uintptr_t>(guest.address(0)),
                   .src = reinterpret_cast<std::uintptr_t>(words.data()),
                   .len = kPageBytes,
                   .mode = 0,
                   .copy = 0};
  if (::ioctl(guest.userfault(), UFFDIO_COPY, &copy) != 0) die("UFFDIO_COPY of its own");
  if (guest.read(0) != words) return 1;
  std::printf("unharmed\n");
  return 0;
}

std::string overlapping(std::string message) {
  const std::string first = message.substr(1, message.find('}'));
  return "[" + first + "," + first + "]";
}

// The last region begins a thousand times further on.
std::string beyond(std::string message) {
  const auto offset = message.rfind("\"offset\":");
  return message.insert(message.find(',', offset), "000");
}

int behave(const Guest& guest, int connection, const std::string& behaviour) {
  const std::string message = guest.message();
  const int fd = guest.userfault();
  const bool refused = behaviour == "silent" || behaviour == "garbage" || behaviour == "no-fd" ||
                       behaviour == "two-fds" || behaviour == "overlap" || behaviour == "beyond";
  if (behaviour == "garbage") {
    send_message(connection, "hello", {fd});
  } else if (behaviour == "no-fd") {
    send_message(connection, message, {});
  } else if (behaviour == "two-fds") {
    send_message(connection, message, {fd, fd});
  } else if (behaviour == "overlap") {
    send_message(connection, overlapping(message), {fd});
  } else if (behaviour == "beyond") {
    send_message(connection, beyond(message), {fd});
  } else if (behaviour != "silent") {
    send_message(connection, message, {fd});
  }
  if (refused) return show_that_unharmed(guest, connection);
  if (behaviour == "close-early") ::close(connection);
  if (behaviour == "verify" || behaviour == "close-early") return verify_all(guest);
  if (behaviour == "balloon") return use_balloon(guest);
  const int code = touch_a_few(guest);
  std::fflush(stdout);
  if (behaviour == "wait") wait_for_stdin();
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const Guest guest(std::stoull(argv[2]), std::stoull(argv[3]));
  const int code = behave(guest, connect_to(argv[1]), argv[4]);
  std::fflush(stdout);
  ::_exit(code);
}
