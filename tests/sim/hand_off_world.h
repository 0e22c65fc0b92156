// HandOffWorld: two hosts, their VMMs and tools, and a store of records, as one small value that can be copied, compared and
// stepped: nothing can interrupt a step. The world of docs/model/hand-off.pml, but here the tools
// ask the product's own rules (transport/hand_off_rules.h) what to do, so the rules that ship are the rules that are checked.
//
// Host 0 runs the guest. A tool that dies is started again and knows nothing; a link that was under way may land late.
// What is checked while stepping goes to `violation`:
//   S1 two VMMs execute; S2 a VMM executes what is not the newest state; S3 memory is given up although a release names a
//   good state, or (by the explorer) nothing can move and the guest does not run.
//
// Thread rule: value.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "transport/hand_off_rules.h"

namespace pageferry::testing_support {

// The violations of docs/ownership-protocol.md, each a rule that is broken on purpose.
enum class Mutation : std::uint8_t {
  none,
  released_before_shut,     // 1
  postmigrate_continued,    // 2
  take_back_continued,      // 3
  given_up_alive,           // 4
  restored_in_open_epoch,   // 5
  owner_without_boot,       // 6
  proof_used_later,         // 7
  running_read_first,       // 8
  two_tools_on_a_host,      // 9
  cont_takes_effect_later,  // 10
  unnamed_image_released,   // 11
  paused_released_again,    // 12
  running_hides_release,    // 13
};

inline constexpr int kWorldEpochs = 4;
inline constexpr int kWorldHosts = 2;
inline constexpr int kWorldTools = 3;  // the third only with two_tools_on_a_host
inline constexpr int kWorldLate = 3;

enum class Run : std::uint8_t { none, run, fin, post_migrate, paused };
enum class At : std::uint8_t {
  look,
  looked,
  read,
  idle,
  migrating,
  committed,
  wait_fin,
  wait_other,
  wait_memory,
  linking,
  claimed,
  cont,
  sent,
  proved,
  stuck,
};
enum class Violation : std::uint8_t { none, s1, s2, s3 };

// Small numbers as in the model: a VMM is 1 + host + 2 * boot + 4 * incarnation (0: none), an image 2 + its epoch.
// Kinds of links:
inline constexpr std::uint8_t kOwner = 1 + static_cast<std::uint8_t>(RecordKind::owner);
inline constexpr std::uint8_t kRunning = 1 + static_cast<std::uint8_t>(RecordKind::running);
inline constexpr std::uint8_t kReleased = 1 + static_cast<std::uint8_t>(RecordKind::released);
inline constexpr std::uint8_t kFenced = 1 + static_cast<std::uint8_t>(RecordKind::fenced);
// Contents of running and released:
inline constexpr std::uint8_t kRuns = 1;
inline constexpr std::uint8_t kVoid = 2;
inline constexpr std::uint8_t kNoImage = 1;

inline std::uint8_t u8(int value) {
  return static_cast<std::uint8_t>(value);
}
// Of a VMM:
inline int host_of(std::uint8_t code) {
  return (code - 1) & 1;
}
inline int boot_of(std::uint8_t code) {
  return ((code - 1) >> 1) & 1;
}

struct WorldLink {
  std::uint8_t kind = 0;  // 0: none, else kOwner ...
  std::uint8_t epoch = 0;
  std::uint8_t content = 0;  // running: kRuns, kVoid; released: kNoImage, else an image
  std::uint8_t vmm = 0;      // owner: whose; released: whose memory
};

struct WorldTool {
  At at = At::look;
  Run look = Run::none;
  std::uint8_t top = 0;
  std::uint8_t top_owner = 0;
  std::uint8_t closed = 0;
  std::uint8_t released = 0;
  std::uint8_t memory = 0;
  std::uint8_t running = 0;
  std::uint8_t wanted_memory = 0;
  std::uint8_t my_image = 0;
  std::uint8_t loaded = 0;
  std::uint8_t unsent = 0;
  std::uint8_t restarted = 0;
  WorldLink link;
};

struct WorldHost {
  std::uint8_t up = 1;
  std::uint8_t boot = 0;
  std::uint8_t returns = 0;
  Run vmm = Run::none;
  std::uint8_t incarnation = 0;
  std::uint8_t fresh = 0;  // ghost: holds the newest state
  std::uint8_t unbooted = 0;
  std::uint8_t socket_open = 0;
  std::uint8_t shut0 = 0;
  std::uint8_t cont_pending = 0;
};

struct WorldRecords {
  std::uint8_t owner = 0;
  std::uint8_t running = 0;
  std::uint8_t released = 0;
  std::uint8_t memory = 0;
  std::uint8_t fenced = 0;
  std::uint8_t fresh_image = 0;  // ghost
  std::uint8_t committed = 0;
  std::uint8_t executed = 0;  // ghost
  bool closed() const { return released != 0 || fenced != 0; }
};

struct HandOffWorld {
  std::array<WorldRecords, kWorldEpochs> epochs{};
  std::array<WorldHost, kWorldHosts> hosts{};
  std::array<WorldTool, kWorldTools> tools{};
  std::array<WorldLink, kWorldLate> late{};
  std::uint8_t faults_left = 0;
  std::uint8_t migrations_left = 0;
  std::uint8_t out_of_epochs = 0;
  Violation violation = Violation::none;

  std::uint8_t vmm_code(int host) const {
    const WorldHost& h = hosts[static_cast<std::size_t>(host)];
    return static_cast<std::uint8_t>(1 + host + 2 * h.boot + 4 * h.incarnation);
  }
  std::string bytes() const {
    return std::string(reinterpret_cast<const char*>(this), sizeof *this);
  }
};
static_assert(std::is_trivially_copyable_v<HandOffWorld>);
static_assert(std::has_unique_object_representations_v<HandOffWorld>, "bytes() is the state");

struct WorldLimits {
  int faults = 1;
  int migrations = 1;
  Mutation mutation = Mutation::none;
};

// The guest runs on host 0 in epoch 0.
HandOffWorld first_world(const WorldLimits& limits);
// It was moved away from host 0 and taken back there: it runs in epoch 1.
HandOffWorld taken_back_world(const WorldLimits& limits);

struct WorldStep {
  std::string what;  // for a trail that people read
  HandOffWorld after;
};
// All steps but faults, then all faults.
std::vector<WorldStep> moves_of(const HandOffWorld& world, Mutation mutation);
std::vector<WorldStep> faults_of(const HandOffWorld& world, Mutation mutation);

// S3, second half, for a world without moves.
bool is_stuck(const HandOffWorld& world);

}  // namespace pageferry::testing_support
