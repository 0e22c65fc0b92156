// Stepper: what one step does to a world. After its two reads a tool does what decide() says; a mutation replaces exactly
// the answer or the order that its rule is about.
//
// Thread rule: one thread. Lifetime: the world outlives it.
#pragma once

#include <cstdint>
#include <optional>

#include "sim/hand_off_question.h"
#include "sim/hand_off_world.h"

namespace pageferry::testing_support {

class Stepper {
 public:
  Stepper(HandOffWorld& world, Mutation mutation) : w_(world), mutation_(mutation) {}

  WorldHost& host(int h) { return w_.hosts[static_cast<std::size_t>(h)]; }
  WorldTool& tool(int t) { return w_.tools[static_cast<std::size_t>(t)]; }
  WorldRecords& epoch(int e) { return w_.epochs[static_cast<std::size_t>(e)]; }
  static int host_of_tool(int t) { return t == 0 ? 0 : 1; }
  int find_top() const;
  // The VMM with this code holds no memory that could be continued.
  bool is_gone(std::uint8_t code) const;

  // VMMs
  void execute(int h, int e);
  void end_vmm(int h);

  // Records. apply(): true when the name was free.
  bool apply(const WorldLink& link);
  void issue(int t, std::uint8_t kind, int e, std::uint8_t content, std::uint8_t vmm);

  // Rule 4: what closes the top epoch is read first, then its running, and then all below, which is closed.
  void read_first(int t);
  void read_second(int t);
  // The reply of the store to the link under way.
  void linked(int t);

  // Faults
  void kill(int t);
  void link_becomes_late(int t);
  void host_off(int h, std::uint8_t returns);

 private:
  void violate(Violation violation) {
    if (w_.violation == Violation::none) w_.violation = violation;
  }
  void spawn(int h);
  void claim_next(int t);
  void read_closing(WorldTool& me);
  Question question_of(int t);
  // A mutation's own answer, if the scene is the one that its rule is about.
  std::optional<Answer> mutated(int t, const Question& question, Run look);
  void restore_again(int t, std::uint8_t image);
  // A named, good state must not be given up. Window L2: an epoch has its running and did not execute.
  void check_boot(const Question& question);
  void act(int t, const Question& question, Run look);

  HandOffWorld& w_;
  const Mutation mutation_;
};

}  // namespace pageferry::testing_support
