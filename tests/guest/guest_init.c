// The guest of the demo and of the tests: PID 1 of an initramfs on Debian's cloud kernel. It is the
// oracle: it knows what each page of its memory must hold, and says so on the serial line. It knows
// nothing about pageferry.
//
// Memory. `pf.fill_mib` of pages. A page is a function of (boot seed, page index, version): three
// header words (index and version, page seed, checksum of the content) and 509 words of an
// incompressible generator. The version that each page must have is kept apart from the pages, in a
// table whose entries carry their own check and whose versions add up to a counter kept elsewhere;
// so a page that is older than it should be, one that is torn, and a table that is old are told
// apart.
//
// Work. One worker thread dirties pages (verify the old content, version + 1, whole page written
// anew) and checks pages, each at its own rate. A late worker does not catch up more than
// SLICE_CATCH_UP_NS: after a stall it goes on at its rate.
//
// Heartbeat. A thread of its own with real-time priority, on absolute deadlines `pf.heartbeat_ms`
// apart. A deadline that was missed is skipped, never made up for in a burst: silence on the line
// is a stall of the guest, and a stall costs beats. The counter counts lines, so a gap in the
// counter means that lines were lost on the way, not that the guest stood still.
//
//   H <counter> <CLOCK_MONOTONIC in us> <pages dirtied> <pages checked> <bad pages so far>
//   PF-READY pages=N ws=N fill-ms=T        memory is filled, work begins
//   PF-BAD page=P expected=V got=V kind=stale|torn|table word=W
//   PF-CHECK pages=N bad=M                 answer to 'c'
//
// Commands, one byte each on the second serial port (on the first where there is no second): c check
// all memory, f flip one bit of it, p pause and r resume dirtying, x power off.
//
// Kernel parameters: pf.fill_mib pf.dirty_mib_s pf.dirty_ws_mib pf.read_mib_s
// pf.pattern=random|sequential pf.heartbeat_ms
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
  kPageBytes = 4096,
  kPageWords = kPageBytes / 8,
  kHeaderWords = 3,
  kPagesPerMib = 256,
  kBadLinesMax = 64,
  kCheckChunkPages = 256,
};
#define SLICE_NS 2000000LL            // the worker wakes up this often
#define SLICE_CATCH_UP_NS 20000000LL  // and never works off more than this at once

enum pattern { kRandom, kSequential };

struct settings {
  uint64_t fill_mib;
  uint64_t dirty_mib_s;
  uint64_t dirty_ws_mib;
  uint64_t read_mib_s;
  uint64_t heartbeat_ms;
  enum pattern pattern;
};

// What a page must hold. `check` binds the version to the page, so that an entry that was
// overwritten or moved is noticed.
struct expected {
  uint32_t version;
  uint32_t check;
};

static struct settings settings = {64, 0, 32, 0, 10, kRandom};
static int serial_fd = -1;   // what the guest says: ttyS0
static int command_fd = -1;  // what it is told: ttyS1, or ttyS0 where there is no second port
static uint64_t* memory;
static struct expected* table;
static uint8_t* known_bad;  // one byte a page: counted as bad already
static uint64_t page_count;
static uint64_t working_set;
static uint64_t boot_seed;
static uint64_t version_sum;  // sum of all versions in the table

static atomic_ullong pages_dirtied;
static atomic_ullong pages_checked;
static atomic_ullong bad_pages;
static atomic_bool dirtying = true;
static atomic_bool check_wanted;
static atomic_bool flip_wanted;

// Longest line: PF-BAD, under 100 bytes. One write(2) a line: the tty keeps it in one piece.
__attribute__((format(printf, 1, 2))) static void say(const char* format, ...) {
  char line[160];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  for (int done = 0; done < length;) {
    ssize_t n = write(serial_fd, line + done, (size_t)(length - done));
    if (n < 0 && errno != EINTR && errno != EAGAIN) return;
    if (n > 0) done += (int)n;
  }
}

static void die(const char* what) {
  say("PF-DEAD %s: %s\n", what, strerror(errno));
  reboot(RB_POWER_OFF);
  for (;;) pause();
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until_ns(int64_t deadline) {
  struct timespec t = {deadline / 1000000000LL, deadline % 1000000000LL};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
  }
}

static uint64_t mix(uint64_t x) {  // splitmix64's finalizer
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static uint64_t random_word(void) {
  static uint64_t state = 0;
  state += 0x9e3779b97f4a7c15ULL;
  return mix(state ^ boot_seed);
}

// --- pages
// -----------------------------------------------------------------------------------------------------------

static uint64_t page_seed(uint64_t index, uint32_t version) {
  return mix(boot_seed ^ mix(index << 32 | version));
}

static uint32_t table_check(uint64_t index, uint32_t version) {
  return (uint32_t)mix(~boot_seed ^ (index << 32 | version));
}

// One step of the content: cheap under TCG (one multiply), incompressible.
#define NEXT_WORD(x) ((x) = (x)*6364136223846793005ULL + 1442695040888963407ULL)
#define CONTENT(x) ((x) ^ ((x) >> 32))

static void write_page(uint64_t index, uint32_t version) {
  uint64_t* page = memory + index * kPageWords;
  uint64_t seed = page_seed(index, version);
  uint64_t x = seed;
  uint64_t sum = 0;
  for (int i = kHeaderWords; i < kPageWords; i++) {
    NEXT_WORD(x);
    uint64_t w = CONTENT(x);
    page[i] = w;
    sum += w;
  }
  page[0] = index << 32 | version;
  page[1] = seed;
  page[2] = sum;
  table[index] = (struct expected){version, table_check(index, version)};
}

// Is the page, whatever its version, one that write_page made? Tells an old page from a torn one.
static int self_consistent(const uint64_t* page) {
  uint64_t sum = 0;
  for (int i = kHeaderWords; i < kPageWords; i++) sum += page[i];
  return sum == page[2] && page[1] == page_seed(page[0] >> 32, (uint32_t)page[0]);
}

static void report_bad(uint64_t index, int word) {
  if (known_bad[index]) return;
  known_bad[index] = 1;
  uint64_t count = atomic_fetch_add(&bad_pages, 1) + 1;
  if (count > kBadLinesMax) return;
  const uint64_t* page = memory + index * kPageWords;
  const char* kind = self_consistent(page) ? "stale" : "torn";
  if (table[index].check != table_check(index, table[index].version)) kind = "table";
  say("PF-BAD page=%llu expected=%u got=%u kind=%s word=%d\n", (unsigned long long)index,
      table[index].version, (uint32_t)page[0], kind, word);
}

// Every word of the page against what the table says it must be. Returns 0 if good.
static int check_page(uint64_t index) {
  const uint64_t* page = memory + index * kPageWords;
  uint32_t version = table[index].version;
  uint64_t seed = page_seed(index, version);
  uint64_t x = seed;
  uint64_t sum = 0;
  uint64_t wrong = 0;
  for (int i = kHeaderWords; i < kPageWords; i++) {
    NEXT_WORD(x);
    uint64_t w = CONTENT(x);
    wrong |= page[i] ^ w;
    sum += w;
  }
  wrong |= page[0] ^ (index << 32 | version);
  wrong |= page[1] ^ seed;
  wrong |= page[2] ^ sum;
  wrong |= table[index].check ^ table_check(index, version);
  if (!wrong) return 0;
  int word = 0;
  x = seed;
  for (int i = kHeaderWords; i < kPageWords && !word; i++) {
    NEXT_WORD(x);
    if (page[i] != CONTENT(x)) word = i;
  }
  report_bad(index, word);
  return 1;
}

static void dirty_page(uint64_t index) {
  check_page(index);
  write_page(index, table[index].version + 1);
  known_bad[index] = 0;
  version_sum++;
  atomic_fetch_add(&pages_dirtied, 1);
}

static void fill_memory(void) {
  page_count = settings.fill_mib * kPagesPerMib;
  working_set = settings.dirty_ws_mib * kPagesPerMib;
  if (working_set > page_count) working_set = page_count;
  memory = mmap(NULL, page_count * kPageBytes + kPageBytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  table = calloc(page_count + 1, sizeof *table);
  known_bad = calloc(page_count + 1, 1);
  if (memory == MAP_FAILED || !table || !known_bad) die("memory for pf.fill_mib");
  if (getrandom(&boot_seed, sizeof boot_seed, GRND_NONBLOCK) != sizeof boot_seed) {
    boot_seed = mix((uint64_t)now_ns());
  }
  for (uint64_t i = 0; i < page_count; i++) write_page(i, 1);
  version_sum = page_count;
}

// --- the worker
// ------------------------------------------------------------------------------------------------------

struct full_check {
  uint64_t next;
  uint64_t bad;
  int running;
};

static void flip_one_bit(void) {
  // Outside the working set where possible, so that the dirtier is not the one that finds it.
  uint64_t first = working_set < page_count ? working_set : 0;
  uint64_t index = first + random_word() % (page_count - first);
  uint64_t bit = random_word() % (kPageBytes * 8);
  memory[index * kPageWords + bit / 64] ^= 1ULL << (bit % 64);
  say("PF-FLIP page=%llu bit=%llu\n", (unsigned long long)index, (unsigned long long)bit);
}

static void finish_full_check(struct full_check* full) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < page_count; i++) sum += table[i].version;
  if (sum != version_sum) {
    say("PF-BAD table: versions add up to %llu, not %llu\n", (unsigned long long)sum,
        (unsigned long long)version_sum);
    atomic_fetch_add(&bad_pages, 1);
    full->bad++;
  }
  say("PF-CHECK pages=%llu bad=%llu\n", (unsigned long long)page_count,
      (unsigned long long)full->bad);
  full->running = 0;
}

// At least as many pages as were dirtied meanwhile: ends on a machine that is too slow for the rate.
static void step_full_check(struct full_check* full, uint64_t dirtied) {
  uint64_t end = full->next + kCheckChunkPages + dirtied;
  for (; full->next < end && full->next < page_count; full->next++) {
    full->bad += (uint64_t)check_page(full->next);
    atomic_fetch_add(&pages_checked, 1);
  }
  if (full->next == page_count) finish_full_check(full);
}

static uint64_t next_dirty_index(void) {
  static uint64_t cursor = 0;
  if (settings.pattern == kRandom) return random_word() % working_set;
  return cursor++ % working_set;
}

// The reader's order covers all pages: steps of about the golden ratio of the page count, made
// coprime to it.
static uint64_t next_read_index(void) {
  static uint64_t cursor = 0;
  static uint64_t stride = 0;
  if (settings.pattern == kSequential) return cursor++ % page_count;
  if (!stride) {
    uint64_t a, b;
    stride = (uint64_t)((double)page_count * 0.6180339887) | 1;
    do {
      stride += 2;
      for (a = stride, b = page_count; b;) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
      }
    } while (a != 1);
  }
  cursor = (cursor + stride) % page_count;
  return cursor;
}

// Pages that are due after `elapsed_ns` at `mib_s`; what is left over stays in *debt_ns.
static uint64_t pages_due(uint64_t mib_s, int64_t* debt_ns) {
  if (*debt_ns > SLICE_CATCH_UP_NS) *debt_ns = SLICE_CATCH_UP_NS;
  if (!mib_s) return 0;
  int64_t ns_per_page = (int64_t)(1000000000ULL / (mib_s * kPagesPerMib));
  uint64_t due = (uint64_t)(*debt_ns / ns_per_page);
  *debt_ns -= (int64_t)due * ns_per_page;
  return due;
}

static void* work(void* unused) {
  (void)unused;
  struct full_check full = {0};
  int64_t last = now_ns();
  int64_t dirty_debt = 0;
  int64_t read_debt = 0;
  for (;;) {
    if (!full.running) sleep_until_ns(last + SLICE_NS);
    int64_t now = now_ns();
    dirty_debt += now - last;
    read_debt += now - last;
    last = now;
    if (atomic_exchange(&flip_wanted, 0)) flip_one_bit();
    uint64_t dirty = pages_due(settings.dirty_mib_s, &dirty_debt);
    if (!atomic_load(&dirtying) || !working_set) dirty = 0;
    for (uint64_t i = 0; i < dirty; i++) dirty_page(next_dirty_index());
    uint64_t reads = pages_due(settings.read_mib_s, &read_debt);
    for (uint64_t i = 0; i < reads && page_count; i++) check_page(next_read_index());
    atomic_fetch_add(&pages_checked, page_count ? reads : 0);
    if (!full.running && atomic_exchange(&check_wanted, 0)) {
      full = (struct full_check){.running = 1};
    }
    if (full.running) step_full_check(&full, dirty);
  }
  return NULL;
}

// --- heartbeat and commands
// ------------------------------------------------------------------------------------------

static void* beat(void* unused) {
  (void)unused;
  struct sched_param priority = {.sched_priority = 50};
  if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority)) die("SCHED_FIFO");
  const int64_t period = (int64_t)settings.heartbeat_ms * 1000000LL;
  int64_t deadline = now_ns() + period;
  for (unsigned long long counter = 1;; counter++) {
    sleep_until_ns(deadline);
    int64_t now = now_ns();
    say("H %llu %lld %llu %llu %llu\n", counter, (long long)(now / 1000),
        atomic_load(&pages_dirtied), atomic_load(&pages_checked), atomic_load(&bad_pages));
    deadline += period;
    if (deadline <= now) deadline += (now - deadline) / period * period + period;
  }
  return NULL;
}

static void obey(char command) {
  switch (command) {
    case 'c':
      atomic_store(&check_wanted, 1);
      break;
    case 'f':
      atomic_store(&flip_wanted, 1);
      break;
    case 'p':
      atomic_store(&dirtying, 0);
      say("PF-PAUSED\n");
      break;
    case 'r':
      atomic_store(&dirtying, 1);
      say("PF-RESUMED\n");
      break;
    case 'x':
      say("PF-BYE\n");
      tcdrain(serial_fd);
      reboot(RB_POWER_OFF);
      break;
    default:
      break;
  }
}

// --- start
// -----------------------------------------------------------------------------------------------------------

// Returns -1 where there is no such port: a tty without hardware opens, but has no attributes.
static int open_port(const char* path) {
  int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
  struct termios t;
  if (fd < 0 || tcgetattr(fd, &t)) return -1;
  cfmakeraw(&t);
  t.c_cflag |= CLOCAL | CREAD;
  cfsetspeed(&t, B115200);
  return tcsetattr(fd, TCSANOW, &t) ? -1 : fd;
}

static void open_serial(void) {
  serial_fd = open_port("/dev/ttyS0");
  if (serial_fd < 0) die("/dev/ttyS0");
  command_fd = open_port("/dev/ttyS1");
  if (command_fd < 0) command_fd = serial_fd;
}

static void parse_number(const char* word, const char* name, uint64_t limit, uint64_t* value) {
  size_t length = strlen(name);
  if (strncmp(word, name, length) || word[length] != '=') return;
  char* end;
  unsigned long long n = strtoull(word + length + 1, &end, 10);
  if (end == word + length + 1 || *end || n > limit) {
    say("PF-DEAD %s: a number from 0 to %llu is wanted\n", word, (unsigned long long)limit);
    reboot(RB_POWER_OFF);
  }
  *value = n;
}

static void parse_command_line(void) {
  static char line[4096];
  int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, line, sizeof line - 1) < 0) die("/proc/cmdline");
  close(fd);
  for (char* word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
    parse_number(word, "pf.fill_mib", 1 << 24, &settings.fill_mib);
    parse_number(word, "pf.dirty_mib_s", 100000, &settings.dirty_mib_s);
    parse_number(word, "pf.dirty_ws_mib", 1 << 24, &settings.dirty_ws_mib);
    parse_number(word, "pf.read_mib_s", 100000, &settings.read_mib_s);
    parse_number(word, "pf.heartbeat_ms", 10000, &settings.heartbeat_ms);
    if (!strcmp(word, "pf.pattern=sequential")) settings.pattern = kSequential;
  }
  if (!settings.heartbeat_ms) settings.heartbeat_ms = 10;
}

int main(void) {
  mkdir("/proc", 0755);
  mkdir("/dev", 0755);
  mkdir("/sys", 0755);
  mount("proc", "/proc", "proc", 0, NULL);
  mount("sysfs", "/sys", "sysfs", 0, NULL);
  mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
  open_serial();
  parse_command_line();
  int64_t start = now_ns();
  fill_memory();
  say("PF-READY pages=%llu ws=%llu fill-ms=%lld\n", (unsigned long long)page_count,
      (unsigned long long)working_set, (long long)((now_ns() - start) / 1000000));
  pthread_t thread;
  if (pthread_create(&thread, NULL, beat, NULL)) die("heartbeat thread");
  if (pthread_create(&thread, NULL, work, NULL)) die("worker thread");
  for (;;) {
    char command;
    ssize_t n = read(command_fd, &command, 1);
    if (n == 1) obey(command);
    if (n <= 0) sleep_until_ns(now_ns() + 10000000LL);
  }
}
