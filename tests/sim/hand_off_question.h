// What a tool of the world asks the product's rules, and what they answer: the one place where the world's small numbers
// become the product's types, and back.
//
// Thread rule: one thread (answers are kept).
#pragma once

#include <array>
#include <cstdint>
#include <tuple>

#include "sim/hand_off_world.h"

namespace pageferry::testing_support {

// What the tool has read, small enough to be a key.
struct ReadRecords {
  std::array<std::array<std::uint8_t, 5>, kWorldEpochs>
      epochs{};  // owner running released memory fenced
  std::uint8_t count = 0;
};

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

// What decide() says.
Answer ask_once(const Question& question, Mutation mutation);
// Which state rule 4 gives to the top epoch, from the product's own rule.
Answer state_for_top(const Question& question, Mutation mutation);

}  // namespace pageferry::testing_support
