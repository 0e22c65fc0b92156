// The steps, each whole: between two of them anything may come.
#include "sim/hand_off_step.h"

#include <utility>

namespace pageferry::testing_support {

void Stepper::execute(int h, int e) {
  if (host(1 - h).vmm == Run::run) violate(Violation::s1);
  if (host(h).fresh == 0 && host(h).unbooted == 0) violate(Violation::s2);
  for (WorldRecords& records : w_.epochs) records.fresh_image = 0;
  host(1 - h).fresh = 0;
  host(h).fresh = 1;
  host(h).unbooted = 0;
  host(h).vmm = Run::run;
  epoch(e).executed = 1;
}

void Stepper::end_vmm(int h) {
  WorldHost& here = host(h);
  here.vmm = Run::none;
  here.fresh = here.unbooted = here.socket_open = here.shut0 = 0;
}

void Stepper::spawn(int h) {
  host(h).vmm = Run::paused;
  ++host(h).incarnation;
}

bool Stepper::apply(const WorldLink& link) {
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

void Stepper::issue(int t, std::uint8_t kind, int e, std::uint8_t content, std::uint8_t vmm) {
  tool(t).link = {kind, u8(e), content, vmm};
  tool(t).at = At::linking;
}

void Stepper::claim_next(int t) {
  if (tool(t).top + 1 < kWorldEpochs) {
    issue(t, kOwner, tool(t).top + 1, 0, w_.vmm_code(host_of_tool(t)));
  } else {
    w_.out_of_epochs = 1;
    tool(t).at = At::stuck;
  }
}

int Stepper::find_top() const {
  int top = kWorldEpochs - 1;
  while (w_.epochs[static_cast<std::size_t>(top)].owner == 0) --top;
  return top;
}

void Stepper::read_first(int t) {
  WorldTool& me = tool(t);
  me.top = u8(find_top());
  if (mutation_ == Mutation::running_read_first) {
    me.running = epoch(me.top).running;
  } else {
    read_closing(me);
  }
  me.at = At::read;
}

void Stepper::read_second(int t) {
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

void Stepper::linked(int t) {
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

void Stepper::kill(int t) {
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

void Stepper::link_becomes_late(int t) {
  for (WorldLink& slot : w_.late) {
    if (slot.kind != 0) continue;
    slot = tool(t).link;
    return;
  }
}

void Stepper::host_off(int h, std::uint8_t returns) {
  host(h).up = 0;
  host(h).returns = returns;
  end_vmm(h);
  for (int t = 0; t < kWorldTools; ++t) {
    if (host_of_tool(t) == h) kill(t);
  }
}

bool Stepper::is_gone(std::uint8_t code) const {
  if (code == 0) return true;
  const WorldHost& there = w_.hosts[static_cast<std::size_t>(host_of(code))];
  return there.up == 0 || code != w_.vmm_code(host_of(code)) || there.vmm != Run::post_migrate;
}

void Stepper::read_closing(WorldTool& me) {
  const WorldRecords& records = epoch(me.top);
  me.closed = records.fenced;
  me.released = records.released;
  me.memory = records.memory;
}

Question Stepper::question_of(int t) {
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

std::optional<Answer> Stepper::mutated(int t, const Question& question, Run look) {
  const WorldTool& me = tool(t);
  const int h = host_of_tool(t);
  const std::uint8_t owner = epoch(me.top).owner;
  const bool mine = host_of(owner) == h && boot_of(owner) == host(h).boot;
  const bool open = me.released == 0 && me.closed == 0;
  if (!open || !mine) return std::nullopt;
  const bool ours = owner == w_.vmm_code(h);
  const Answer same = state_for_top(question, mutation_);
  switch (mutation_) {
    case Mutation::postmigrate_continued:
    case Mutation::take_back_continued:
      if (look == Run::post_migrate && ours && me.running != 0 && me.restarted != 0 &&
          (me.top == 0) == (mutation_ == Mutation::postmigrate_continued)) {
        return Answer{Action::continue_only, 0, 0};
      }
      break;
    case Mutation::restored_in_open_epoch:
      if (look == Run::none && me.running != kVoid && same.image != 0 && host(h).incarnation < 3) {
        restore_again(t, same.image);
        return Answer{me.running == kRuns ? Action::continue_only : Action::run_and_continue, 0, 0};
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

void Stepper::restore_again(int t, std::uint8_t image) {
  const int h = host_of_tool(t);
  spawn(h);
  host(h).fresh = epoch(image - 2).fresh_image;
  tool(t).loaded = image;
  epoch(tool(t).top).owner = w_.vmm_code(h);
}

void Stepper::check_boot(const Question& question) {
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

void Stepper::act(int t, const Question& question, Run look) {
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

}  // namespace pageferry::testing_support
