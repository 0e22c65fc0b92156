// The steps of the world. What a tool does after its two reads is what decide() says; a mutation replaces exactly the answer
// or the order that its rule is about.
#include "sim/hand_off_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "fakes/ownership_samples.h"

namespace pageferry::testing_support {
namespace {

constexpr std::uint8_t kOwner = 1 + static_cast<std::uint8_t>(RecordKind::owner);
constexpr std::uint8_t kRunning = 1 + static_cast<std::uint8_t>(RecordKind::running);
constexpr std::uint8_t kReleased = 1 + static_cast<std::uint8_t>(RecordKind::released);
constexpr std::uint8_t kFenced = 1 + static_cast<std::uint8_t>(RecordKind::fenced);
constexpr std::uint8_t kRuns = 1;
constexpr std::uint8_t kVoid = 2;
constexpr std::uint8_t kNoImage = 1;

std::uint8_t u8(int value) {
  return static_cast<std::uint8_t>(value);
}
int host_of(std::uint8_t code) {
  return (code - 1) & 1;
}
int boot_of(std::uint8_t code) {
  return ((code - 1) >> 1) & 1;
}

// ---- small numbers to the product's types and back ----

HostIdentity host_identity(int host, int boot) {
  return sample_host(host == 0 ? 'a' : 'b', 1 + boot);
}
HostIdentity host_identity_of(std::uint8_t code) {
  return host_identity(host_of(code), boot_of(code));
}
ProcessIdentity process_of(std::uint8_t code) {
  return sample_vmm(code);
}
ImageRef image_of(std::uint8_t image) {
  return sample_image(image - 2U);
}

std::uint8_t image_number(const std::optional<ImageRef>& image) {
  for (int epoch = 0; image && epoch < kWorldEpochs; ++epoch) {
    if (*image == image_of(u8(2 + epoch))) return u8(2 + epoch);
  }
  return 0;
}
std::uint8_t vmm_number(const std::optional<StoppedVmm>& vmm) {
  return vmm ? u8(vmm->process.pid - sample_vmm(0).pid) : u8(0);
}

// What the tool has read, small enough to be a key.
struct ReadRecords {
  std::array<std::array<std::uint8_t, 5>, kWorldEpochs>
      epochs{};  // owner running released memory fenced
  std::uint8_t count = 0;
};

OwnershipSnapshot snapshot_of(const ReadRecords& read, int host, int boot, Mutation mutation) {
  OwnershipSnapshot snapshot;
  for (std::uint32_t epoch = 0; epoch < read.count; ++epoch) {
    const auto [owner, running, released, memory, fenced] = read.epochs[epoch];
    RecordWriter writer = sample_writer();
    writer.host = host_identity_of(owner);
    writer.vmm = process_of(owner);
    writer.claimant = sample_id(owner);
    if (mutation == Mutation::owner_without_boot && host_of(owner) == host) {
      writer.host = host_identity(host, boot);
      // Without the boot, incarnations are all that tells VMMs of a host apart.
      writer.vmm = process_of(u8(((owner - 1) & ~2) + 2 * boot + 1));
    }
    EpochRecords records;
    records.owner = sample_record(epoch, OwnerFact{}, writer);
    if (running != 0) {
      records.running = sample_record(epoch, running == kRuns ? runs() : never_ran(), writer);
    }
    if (released != 0) {
      ReleasedFact fact;
      const bool hidden = mutation == Mutation::running_hides_release && running == kRuns;
      if (released > kNoImage && !hidden) fact.state.image = image_of(released);
      if (memory != 0 && !hidden) {
        fact.state.memory = StoppedVmm{host_identity_of(memory), process_of(memory)};
      }
      records.released = sample_record(epoch, fact, writer);
    }
    if (fenced != 0) {
      records.fenced = sample_record(
          epoch, FencedFact{writer.claimant, FencingMeans::operator_word, ""}, writer);
    }
    snapshot.epochs.push_back(std::move(records));
  }
  return snapshot;
}

// The answer of decide() in small numbers.
struct Answer {
  Action action = Action::wait;
  std::uint8_t image = 0;
  std::uint8_t memory = 0;
};

struct Question {
  Run look = Run::none;
  std::uint8_t vmm = 0;
  std::uint8_t host = 0;
  std::uint8_t boot = 0;
  std::uint8_t my_image = 0;
  std::uint8_t loaded = 0;
  std::uint8_t unsent = 0;
  ReadRecords read;
  auto key() const {
    return std::tuple(look, vmm, host, boot, my_image, loaded, unsent, read.count, read.epochs);
  }
};

VmmState state_of(Run run) {
  switch (run) {
    case Run::none:
      return VmmState::none;
    case Run::run:
      return VmmState::running;
    case Run::fin:
      return VmmState::finishing;
    case Run::post_migrate:
      return VmmState::post_migrate;
    case Run::paused:
      return VmmState::paused;
  }
  return VmmState::none;
}

Answer ask(const Question& question, Mutation mutation) {
  const auto me = host_identity(question.host, question.boot);
  const auto snapshot = snapshot_of(question.read, question.host, question.boot, mutation);
  VmmView view{state_of(question.look), std::nullopt, std::nullopt};
  if (question.look != Run::none) view.process = process_of(question.vmm);
  if (question.loaded != 0) view.loaded = image_of(question.loaded);
  // The owner's VMM is asked about first; if it was here and is gone, the answer is about that.
  const auto named = vmm_of_highest(snapshot, me);
  const bool stopped = question.look == Run::post_migrate || question.look == Run::paused;
  if (stopped && !snapshot.top().is_closed() && named && named != view.process) {
    view = VmmView{};
  }
  ToolMemory memory;
  const std::uint8_t top = u8(question.read.count - 1);
  if (question.my_image == 2 + top) memory.completed_image = image_of(question.my_image);
  if (question.unsent != 0) memory.ran_without_continue = Epoch{top};
  const Decision decision = decide(view, snapshot, me, memory);
  return {decision.action, image_number(decision.state.image), vmm_number(decision.state.memory)};
}

// decide() builds records full of text; the same few thousand questions come up millions of times.
Answer ask_once(const Question& question, Mutation mutation) {
  static std::map<std::pair<Mutation, decltype(Question().key())>, Answer> answers;
  const auto key = std::pair(mutation, question.key());
  const auto known = answers.find(key);
  if (known != answers.end()) return known->second;
  return answers.emplace(key, ask(question, mutation)).first->second;
}

// ---- one step ----

class Stepper {
 public:
  Stepper(HandOffWorld& world, Mutation mutation) : w_(world), mutation_(mutation) {}

  WorldHost& host(int h) { return w_.hosts[static_cast<std::size_t>(h)]; }
  WorldTool& tool(int t) { return w_.tools[static_cast<std::size_t>(t)]; }
  WorldRecords& epoch(int e) { return w_.epochs[static_cast<std::size_t>(e)]; }
  static int host_of_tool(int t) { return t == 0 ? 0 : 1; }

  void violate(Violation violation) {
    if (w_.violation == Violation::none) w_.violation = violation;
  }

  void execute(int h, int e) {
    if (host(1 - h).vmm == Run::run) violate(Violation::s1);
    if (host(h).fresh == 0 && host(h).unbooted == 0) violate(Violation::s2);
    for (WorldRecords& records : w_.epochs) records.fresh_image = 0;
    host(1 - h).fresh = 0;
    host(h).fresh = 1;
    host(h).unbooted = 0;
    host(h).vmm = Run::run;
    epoch(e).executed = 1;
  }
  void end_vmm(int h) {
    WorldHost& here = host(h);
    here.vmm = Run::none;
    here.fresh = here.unbooted = here.socket_open = here.shut0 = 0;
  }
  void spawn(int h) {
    host(h).vmm = Run::paused;
    ++host(h).incarnation;
  }

  // True when the name was free.
  bool apply(const WorldLink& link) {
    WorldRecords& records = epoch(link.epoch);
    if (link.kind == kOwner && records.owner == 0) {
      records.owner = link.vmm;
    } else if (link.kind == kRunning && records.running == 0) {
      records.running = link.content;
    } else if (link.kind == kReleased && records.released == 0) {
      records.released = link.content;
      records.memory = link.vmm;
    } else if (link.kind == kFenced && records.fenced == 0) {
      records.fenced = 1;
    } else {
      return false;
    }
    return true;
  }
  void issue(int t, std::uint8_t kind, int e, std::uint8_t content, std::uint8_t vmm) {
    tool(t).link = {kind, u8(e), content, vmm};
    tool(t).at = At::linking;
  }
  void claim_next(int t) {
    if (tool(t).top + 1 < kWorldEpochs) {
      issue(t, kOwner, tool(t).top + 1, 0, w_.vmm_code(host_of_tool(t)));
    } else {
      w_.out_of_epochs = 1;
      tool(t).at = At::stuck;
    }
  }
  int find_top() const {
    int top = kWorldEpochs - 1;
    while (w_.epochs[static_cast<std::size_t>(top)].owner == 0) --top;
    return top;
  }

  // Rule 4: what closes the top epoch is read first ...
  void read_first(int t) {
    WorldTool& me = tool(t);
    me.top = u8(find_top());
    if (mutation_ == Mutation::running_read_first) {
      me.running = epoch(me.top).running;
    } else {
      read_closing(me);
    }
    me.at = At::read;
  }
  // ... then its running, and then all below, which is closed.
  void read_second(int t) {
    WorldTool& me = tool(t);
    if (mutation_ == Mutation::running_read_first) {
      read_closing(me);
    } else {
      me.running = epoch(me.top).running;
    }
    Question question = question_of(t);
    const Run look = me.look;
    me.look = Run::none;
    act(t, question, look);
    if (me.at != At::wait_other) me.look = Run::none;
    me.closed = me.released = me.memory = me.running = 0;
  }

  // The reply of the store to the link under way.
  void linked(int t) {
    WorldTool& me = tool(t);
    const int h = host_of_tool(t);
    const WorldLink link = std::exchange(me.link, WorldLink{});
    bool won = apply(link);
    if (mutation_ == Mutation::owner_without_boot && link.kind == kOwner &&
        host_of(epoch(link.epoch).owner) == h) {
      won = true;
    }
    me.at = At::look;
    if (link.kind == kOwner && won) {
      ++me.top;
      me.at = At::claimed;
    } else if (link.kind == kRunning && link.content == kRuns && won) {
      me.unsent = 1;
      me.at = At::cont;
    } else if (link.kind == kReleased) {
      me.unsent = me.my_image = 0;
      if (won && link.content > kNoImage && host(h).vmm == Run::post_migrate) me.at = At::sent;
      if (mutation_ == Mutation::released_before_shut && host(h).vmm == Run::fin) {
        me.at = At::committed;
      }
      if (mutation_ == Mutation::given_up_alive && host(h).vmm == Run::paused) {
        end_vmm(h);
        me.loaded = 0;
      }
    }
  }

  void kill(int t) {
    const int h = host_of_tool(t);
    if (mutation_ == Mutation::cont_takes_effect_later) {
      host(h).cont_pending = tool(t).at == At::cont ? 1 : 0;
    }
    const bool matters =
        mutation_ == Mutation::postmigrate_continued || mutation_ == Mutation::take_back_continued;
    host(h).socket_open = 0;
    tool(t) = WorldTool{};
    tool(t).restarted = matters ? 1 : 0;
  }
  void link_becomes_late(int t) {
    for (WorldLink& slot : w_.late) {
      if (slot.kind != 0) continue;
      slot = tool(t).link;
      return;
    }
  }
  void host_off(int h, std::uint8_t returns) {
    host(h).up = 0;
    host(h).returns = returns;
    end_vmm(h);
    for (int t = 0; t < kWorldTools; ++t) {
      if (host_of_tool(t) == h) kill(t);
    }
  }
  bool is_gone(std::uint8_t code) const {
    if (code == 0) return true;
    const WorldHost& there = w_.hosts[static_cast<std::size_t>(host_of(code))];
    return there.up == 0 || code != w_.vmm_code(host_of(code)) || there.vmm != Run::post_migrate;
  }

 private:
  void read_closing(WorldTool& me) {
    const WorldRecords& records = epoch(me.top);
    me.closed = records.fenced;
    me.released = records.released;
    me.memory = records.memory;
  }

  Question question_of(int t) {
    const WorldTool& me = tool(t);
    const int h = host_of_tool(t);
    Question question;
    question.look = me.look;
    question.vmm = me.look == Run::none ? u8(0) : w_.vmm_code(h);
    question.host = u8(h);
    question.boot = host(h).boot;
    question.my_image = me.my_image;
    question.loaded = me.loaded;
    question.unsent = me.unsent;
    question.read.count = u8(me.top + 1);
    for (int e = 0; e < me.top; ++e) {
      const WorldRecords& r = epoch(e);
      question.read.epochs[static_cast<std::size_t>(e)] = {r.owner, r.running, r.released, r.memory,
                                                           r.fenced};
    }
    question.read.epochs[me.top] = {epoch(me.top).owner, me.running, me.released, me.memory,
                                    me.closed};
    return question;
  }

  // A mutation's own answer, if the scene is the one that its rule is about.
  std::optional<Answer> mutated(int t, const Question& question, Run look) {
    const WorldTool& me = tool(t);
    const int h = host_of_tool(t);
    const std::uint8_t owner = epoch(me.top).owner;
    const bool mine = host_of(owner) == h && boot_of(owner) == host(h).boot;
    const bool open = me.released == 0 && me.closed == 0;
    if (!open || !mine) return std::nullopt;
    const bool ours = owner == w_.vmm_code(h);
    const Answer same = rule4_for_top(question);
    switch (mutation_) {
      case Mutation::postmigrate_continued:
      case Mutation::take_back_continued:
        if (look == Run::post_migrate && ours && me.running != 0 && me.restarted != 0 &&
            (me.top == 0) == (mutation_ == Mutation::postmigrate_continued)) {
          return Answer{Action::continue_only, 0, 0};
        }
        break;
      case Mutation::restored_in_open_epoch:
        if (look == Run::none && me.running != kVoid && same.image != 0 &&
            host(h).incarnation < 3) {
          restore_again(t, same.image);
          return Answer{me.running == kRuns ? Action::continue_only : Action::run_and_continue, 0,
                        0};
        }
        break;
      case Mutation::unnamed_image_released:
        if (look == Run::none && me.running == kRuns && epoch(me.top).committed != 0) {
          return Answer{Action::release, u8(2 + me.top), 0};
        }
        break;
      case Mutation::paused_released_again:
        if (look == Run::paused && ours && me.running == kRuns && same.image != 0) {
          return Answer{Action::release, same.image, same.memory};
        }
        break;
      default:
        break;
    }
    return std::nullopt;
  }

  // Which state rule 4 gives to the top epoch, from the product's own rule.
  Answer rule4_for_top(const Question& question) const {
    const auto snapshot = snapshot_of(question.read, question.host, question.boot, mutation_);
    const GuestState state = image_for(snapshot, snapshot.highest());
    return {Action::wait, image_number(state.image), vmm_number(state.memory)};
  }

  void restore_again(int t, std::uint8_t image) {
    const int h = host_of_tool(t);
    spawn(h);
    host(h).fresh = epoch(image - 2).fresh_image;
    tool(t).loaded = image;
    epoch(tool(t).top).owner = w_.vmm_code(h);
  }

  // A named, good state must not be given up. Window L2: an epoch has its running and did not execute.
  void check_boot(const Question& question) {
    bool window = false;
    for (const WorldRecords& records : w_.epochs) {
      window = window || (records.running == kRuns && records.executed == 0 &&
                          (records.released <= kNoImage && is_gone(records.memory)));
    }
    for (int e = 0; e < question.read.count && !window; ++e) {
      const std::uint8_t image = question.read.epochs[static_cast<std::size_t>(e)][2];
      if (image > kNoImage && epoch(image - 2).fresh_image != 0) violate(Violation::s3);
    }
  }

  void act(int t, const Question& question, Run look) {
    WorldTool& me = tool(t);
    const int h = host_of_tool(t);
    const auto changed = mutated(t, question, look);
    const Answer answer = changed ? *changed : ask_once(question, mutation_);
    const std::uint8_t content = answer.image != 0 ? answer.image : kNoImage;
    switch (answer.action) {
      case Action::nothing:
        me.at = At::idle;
        break;
      case Action::wait:
        me.at = look == Run::fin ? At::wait_fin : At::wait_other;
        me.look = look;
        break;
      case Action::keep_and_wait:
        me.at = At::wait_other;
        me.look = look;
        break;
      case Action::write_fenced:
        issue(t, kFenced, me.top, 0, 0);
        break;
      case Action::release:
        issue(t, kReleased, me.top, content, answer.memory);
        break;
      case Action::give_up_unrun:
        issue(t, kRunning, me.top, kVoid, 0);
        break;
      case Action::claim_and_continue:
        claim_next(t);
        break;
      case Action::run_and_continue:
        me.at = At::claimed;
        break;
      case Action::continue_only:
        me.at = At::cont;
        break;
      case Action::end_vmm:
        end_vmm(h);
        me.loaded = 0;
        me.at = At::look;
        break;
      case Action::load_claim_continue:
        spawn(h);
        host(h).fresh = epoch(answer.image - 2).fresh_image;
        me.loaded = answer.image;
        claim_next(t);
        break;
      case Action::boot_claimed:
        if (!is_gone(answer.memory)) {
          me.at = At::wait_memory;
          me.wanted_memory = answer.memory;
          break;
        }
        check_boot(question);
        spawn(h);
        host(h).unbooted = 1;
        claim_next(t);
        break;
    }
  }

  HandOffWorld& w_;
  const Mutation mutation_;
};

// Collects the steps of one world.
class Steps {
 public:
  Steps(const HandOffWorld& world, Mutation mutation) : world_(world), mutation_(mutation) {}

  template <typename Effect>
  void step(std::string what, Effect effect) {
    WorldStep next{std::move(what), world_};
    Stepper stepper(next.after, mutation_);
    effect(stepper, next.after);
    steps_.push_back(std::move(next));
  }
  std::vector<WorldStep> take() { return std::move(steps_); }

 private:
  const HandOffWorld& world_;
  const Mutation mutation_;
  std::vector<WorldStep> steps_;
};

bool next_is_taken(const HandOffWorld& world, int top) {
  return top + 1 < kWorldEpochs && world.epochs[static_cast<std::size_t>(top + 1)].owner != 0;
}

void source_moves(Steps& steps, const HandOffWorld& world, int t, int h, Mutation mutation) {
  const WorldTool& me = world.tools[static_cast<std::size_t>(t)];
  const WorldHost& here = world.hosts[static_cast<std::size_t>(h)];
  const WorldRecords& top = world.epochs[me.top];
  if (me.at == At::idle && here.vmm == Run::run && world.migrations_left != 0 &&
      top.owner == world.vmm_code(h) && top.running == kRuns && !top.closed() &&
      !next_is_taken(world, me.top) && me.top + 1 < kWorldEpochs) {
    steps.step(fmt::format("tool {} migrates", t), [&](Stepper& s, HandOffWorld& w) {
      --w.migrations_left;
      s.host(h).vmm = Run::fin;
      s.host(h).socket_open = 1;
      s.tool(t).at = At::migrating;
    });
  }
  if (me.at == At::migrating && here.vmm == Run::fin) {
    steps.step(fmt::format("tool {} commits the image", t), [&](Stepper& s, HandOffWorld& w) {
      s.epoch(me.top).fresh_image = here.fresh;
      if (mutation == Mutation::unnamed_image_released) s.epoch(me.top).committed = 1;
      s.tool(t).my_image = u8(2 + me.top);
      s.tool(t).at = At::committed;
      if (mutation == Mutation::released_before_shut) {
        s.issue(t, kReleased, me.top, u8(2 + me.top), w.vmm_code(h));
      }
    });
  }
  if (me.at == At::committed && here.vmm == Run::fin) {
    steps.step(fmt::format("tool {} aborts", t), [&](Stepper& s, HandOffWorld&) {
      s.host(h).socket_open = 0;
      s.tool(t).my_image = 0;
      s.tool(t).at = At::wait_fin;
    });
    steps.step(fmt::format("tool {} sends SHUT(0)", t), [&](Stepper& s, HandOffWorld&) {
      s.host(h).shut0 = 1;
      s.tool(t).at = At::wait_fin;
    });
  }
  const bool over = (me.at == At::migrating || me.at == At::committed || me.at == At::wait_fin) &&
                    here.vmm != Run::fin;
  if (over || (me.at == At::idle && here.vmm != Run::run)) {
    steps.step(fmt::format("tool {} sees its VMM change", t),
               [&](Stepper& s, HandOffWorld&) { s.tool(t).at = At::look; });
  }
  if (me.at == At::sent) {
    steps.step(fmt::format("tool {} keeps its source", t),
               [&](Stepper& s, HandOffWorld&) { s.tool(t).at = At::look; });
    if (here.vmm == Run::post_migrate) {
      steps.step(fmt::format("tool {} ends its source", t), [&](Stepper& s, HandOffWorld&) {
        s.end_vmm(h);
        s.tool(t).at = At::look;
      });
    }
  }
}

void owner_moves(Steps& steps, const HandOffWorld& world, int t, int h, Mutation mutation) {
  const WorldTool& me = world.tools[static_cast<std::size_t>(t)];
  const WorldHost& here = world.hosts[static_cast<std::size_t>(h)];
  if (me.at == At::claimed) {
    steps.step(fmt::format("tool {} links running.{}", t, me.top),
               [&](Stepper& s, HandOffWorld&) { s.issue(t, kRunning, me.top, kRuns, 0); });
    const bool may_change_mind = here.vmm == Run::paused && here.unbooted == 0;
    if (may_change_mind && mutation != Mutation::given_up_alive) {
      steps.step(fmt::format("tool {} ends its VMM and gives up", t),
                 [&](Stepper& s, HandOffWorld&) {
                   s.end_vmm(h);
                   s.tool(t).loaded = 0;
                   s.tool(t).at = At::look;
                 });
    } else if (may_change_mind && me.loaded != 0) {
      steps.step(fmt::format("tool {} gives up, its VMM alive", t),
                 [&](Stepper& s, HandOffWorld&) { s.issue(t, kReleased, me.top, me.loaded, 0); });
    }
  }
  if (me.at == At::cont) {
    const bool stopped = here.vmm == Run::post_migrate || here.vmm == Run::paused;
    steps.step(fmt::format("tool {} {}", t, stopped ? "continues its VMM" : "finds its VMM gone"),
               [&](Stepper& s, HandOffWorld&) {
                 if (stopped) {
                   s.execute(h, me.top);
                   s.tool(t).unsent = s.tool(t).loaded = s.tool(t).my_image = 0;
                 }
                 s.tool(t).at = At::look;
               });
  }
}

void waiting_moves(Steps& steps, const HandOffWorld& world, int t, int h, Mutation mutation) {
  const WorldTool& me = world.tools[static_cast<std::size_t>(t)];
  const WorldHost& here = world.hosts[static_cast<std::size_t>(h)];
  const WorldRecords& top = world.epochs[me.top];
  if (me.at == At::wait_other) {
    if (top.closed() || next_is_taken(world, me.top) || here.vmm != me.look ||
        (me.look == Run::post_migrate && top.running == kRuns)) {
      steps.step(fmt::format("tool {} looks again", t), [&](Stepper& s, HandOffWorld&) {
        s.tool(t).look = Run::none;
        s.tool(t).at = At::look;
      });
    }
    // Off now, or in another boot: proved after the owner record was read (rule 9).
    const WorldHost& there = world.hosts[static_cast<std::size_t>(host_of(top.owner))];
    if (there.up == 0 || there.boot != boot_of(top.owner)) {
      steps.step(fmt::format("tool {} gets a proof for epoch {}", t, me.top),
                 [&](Stepper& s, HandOffWorld&) {
                   s.tool(t).look = Run::none;
                   s.tool(t).at = At::proved;
                   if (mutation != Mutation::proof_used_later) s.issue(t, kFenced, me.top, 0, 0);
                 });
    }
  }
  if (me.at == At::proved) {
    steps.step(fmt::format("tool {} uses its proof", t), [&](Stepper& s, HandOffWorld&) {
      s.tool(t).top = u8(s.find_top());
      const WorldRecords& now = s.epoch(s.tool(t).top);
      s.tool(t).at = At::look;
      if (host_of(now.owner) != h && !now.closed()) s.issue(t, kFenced, s.tool(t).top, 0, 0);
    });
  }
  if (me.at == At::wait_memory) {
    steps.step(fmt::format("tool {} looks again", t), [&](Stepper& s, HandOffWorld&) {
      s.tool(t).wanted_memory = 0;
      s.tool(t).at = At::look;
    });
  }
}

void tool_moves(Steps& steps, const HandOffWorld& world, int t, Mutation mutation) {
  const int h = Stepper::host_of_tool(t);
  const WorldTool& me = world.tools[static_cast<std::size_t>(t)];
  const WorldHost& here = world.hosts[static_cast<std::size_t>(h)];
  // Looking and reading are two steps only where the two orders can be told apart.
  const bool apart =
      mutation == Mutation::two_tools_on_a_host || mutation == Mutation::cont_takes_effect_later;
  if (me.at == At::look && here.up != 0) {
    steps.step(fmt::format("tool {} looks", t), [&](Stepper& s, HandOffWorld&) {
      s.tool(t).look = here.vmm;
      s.tool(t).at = At::looked;
      if (!apart) s.read_first(t);
    });
  }
  if (me.at == At::looked) {
    steps.step(fmt::format("tool {} reads", t),
               [&](Stepper& s, HandOffWorld&) { s.read_first(t); });
  }
  if (me.at == At::read) {
    steps.step(fmt::format("tool {} reads and decides", t),
               [&](Stepper& s, HandOffWorld&) { s.read_second(t); });
  }
  if (me.at == At::linking) {
    steps.step(fmt::format("tool {}: link kind {} epoch {} content {} memory {}", t, me.link.kind,
                           me.link.epoch, me.link.content, me.link.vmm),
               [&](Stepper& s, HandOffWorld&) { s.linked(t); });
  }
  source_moves(steps, world, t, h, mutation);
  owner_moves(steps, world, t, h, mutation);
  const bool memory_waits = me.at == At::wait_memory;
  HandOffWorld copy = world;
  if (!memory_waits || Stepper(copy, mutation).is_gone(me.wanted_memory) ||
      next_is_taken(world, me.top)) {
    waiting_moves(steps, world, t, h, mutation);
  }
}

int tools_of(Mutation mutation) {
  return mutation == Mutation::two_tools_on_a_host ? 3 : 2;
}

}  // namespace

HandOffWorld first_world(const WorldLimits& limits) {
  HandOffWorld world;
  world.hosts[0].vmm = Run::run;
  world.hosts[0].fresh = 1;
  world.epochs[0].owner = world.vmm_code(0);
  world.epochs[0].running = kRuns;
  world.epochs[0].executed = 1;
  world.faults_left = u8(limits.faults);
  world.migrations_left = u8(limits.migrations);
  return world;
}

HandOffWorld taken_back_world(const WorldLimits& limits) {
  HandOffWorld world = first_world(limits);
  world.epochs[0].released = 2;
  world.epochs[0].memory = world.vmm_code(0);
  world.epochs[1].owner = world.vmm_code(0);
  world.epochs[1].running = kRuns;
  world.epochs[1].executed = 1;
  return world;
}

std::vector<WorldStep> moves_of(const HandOffWorld& world, Mutation mutation) {
  Steps steps(world, mutation);
  for (int t = 0; t < tools_of(mutation); ++t) tool_moves(steps, world, t, mutation);
  for (int h = 0; h < kWorldHosts; ++h) {
    const WorldHost& here = world.hosts[static_cast<std::size_t>(h)];
    if (here.vmm == Run::fin && here.shut0 != 0) {
      steps.step(fmt::format("VMM of host {} completes", h), [&](Stepper& s, HandOffWorld&) {
        s.host(h).vmm = Run::post_migrate;
        s.host(h).shut0 = s.host(h).socket_open = 0;
      });
    } else if (here.vmm == Run::fin && here.socket_open == 0) {
      steps.step(fmt::format("VMM of host {} resumes by itself", h),
                 [&](Stepper& s, HandOffWorld&) { s.execute(h, 0); });
    }
    if (here.cont_pending != 0 && (here.vmm == Run::post_migrate || here.vmm == Run::paused)) {
      steps.step(fmt::format("a late cont reaches host {}", h), [&](Stepper& s, HandOffWorld&) {
        s.host(h).cont_pending = 0;
        s.execute(h, 0);
      });
    }
    if (here.up == 0 && here.returns != 0) {
      steps.step(fmt::format("host {} boots", h), [&](Stepper& s, HandOffWorld&) {
        s.host(h) = WorldHost{};
        s.host(h).boot = 1;
      });
    }
  }
  for (std::size_t slot = 0; slot < world.late.size(); ++slot) {
    if (world.late[slot].kind == 0) continue;
    const WorldLink link = world.late[slot];
    steps.step(fmt::format("a late link lands: kind {} epoch {} content {} memory {}", link.kind,
                           link.epoch, link.content, link.vmm),
               [&](Stepper& s, HandOffWorld& w) {
                 static_cast<void>(s.apply(link));
                 w.late[slot] = WorldLink{};
               });
  }
  return steps.take();
}

std::vector<WorldStep> faults_of(const HandOffWorld& world, Mutation mutation) {
  Steps steps(world, mutation);
  if (world.faults_left == 0) return {};
  for (int t = 0; t < tools_of(mutation); ++t) {
    const WorldTool& me = world.tools[static_cast<std::size_t>(t)];
    if (me.at == At::look) continue;
    for (const bool late : {false, true}) {
      if (late && me.link.kind == 0) continue;
      steps.step(fmt::format("FAULT: tool {} dies{}", t, late ? ", its link is late" : ""),
                 [&](Stepper& s, HandOffWorld& w) {
                   --w.faults_left;
                   if (late) s.link_becomes_late(t);
                   s.kill(t);
                 });
    }
  }
  for (int h = 0; h < kWorldHosts; ++h) {
    const WorldHost& here = world.hosts[static_cast<std::size_t>(h)];
    if (here.vmm != Run::none) {
      steps.step(fmt::format("FAULT: VMM of host {} dies", h), [&](Stepper& s, HandOffWorld& w) {
        --w.faults_left;
        s.end_vmm(h);
      });
    }
    if (here.vmm == Run::run) {
      steps.step(fmt::format("FAULT: a user pauses the guest on host {}", h),
                 [&](Stepper& s, HandOffWorld& w) {
                   --w.faults_left;
                   s.host(h).vmm = Run::paused;
                 });
    }
    if (here.up == 0) continue;
    for (const bool late : {false, true}) {
      for (const bool returns : {false, true}) {
        if (late && world.tools[static_cast<std::size_t>(h)].link.kind == 0) continue;
        if (returns && here.boot != 0) continue;
        steps.step(fmt::format("FAULT: host {} goes off{}{}", h, returns ? " for a while" : "",
                               late ? ", its link is late" : ""),
                   [&](Stepper& s, HandOffWorld& w) {
                     --w.faults_left;
                     if (late) s.link_becomes_late(h);
                     s.host_off(h, returns ? 1 : 0);
                   });
      }
    }
  }
  return steps.take();
}

bool is_stuck(const HandOffWorld& world) {
  if (world.out_of_epochs != 0) return false;
  bool any_up = false;
  for (const WorldHost& host : world.hosts) {
    if (host.vmm == Run::run) return false;
    any_up = any_up || host.up != 0;
  }
  return any_up;
}

}  // namespace pageferry::testing_support
