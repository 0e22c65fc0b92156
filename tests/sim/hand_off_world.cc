// Which steps a world has: what each tool, VMM and host may do next, and which faults may come. What a step does is in
// hand_off_step.cc.
#include "sim/hand_off_world.h"

#include <fmt/format.h>

#include <utility>

#include "sim/hand_off_step.h"

namespace pageferry::testing_support {
namespace {

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
