// Records for tests: hosts "a", "b", ... in boots, with VMMs by pid, so that a test only says what
// matters to it. Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "transport/ownership_record.h"

namespace pageferry::testing_support {

inline RandomId sample_id(std::uint8_t number) {
  RandomId id;
  id.bytes.fill(0);
  id.bytes.back() = number;
  return id;
}

// `name` is one letter; boots are numbered.
inline HostIdentity sample_host(char name, int boot = 1) {
  HostIdentity host;
  host.name = std::string("host-") + name;
  host.machine = std::string(32, name == 'a' ? 'a' : 'b');
  host.boot_id = "00000000-0000-4000-8000-00000000000" + std::to_string(boot);
  if (name != 'a') host.boot_id.front() = 'b';
  return host;
}

inline ProcessIdentity sample_vmm(int number) {
  return {1000 + number, static_cast<std::uint64_t>(50'000 + number)};
}

inline RecordWriter sample_writer(char host = 'a', int vmm = 1, int boot = 1) {
  RecordWriter writer;
  writer.claimant = sample_id(static_cast<std::uint8_t>(vmm));
  writer.host = sample_host(host, boot);
  writer.tool = {500, 40'000};
  writer.vmm = sample_vmm(vmm);
  writer.wall_time_s = 1'790'000'000;
  return writer;
}

inline ImageRef sample_image(std::uint32_t epoch = 0) {
  return {"attempt." + std::to_string(epoch) + "." + sample_id(7).hex(),
          sample_id(static_cast<std::uint8_t>(100 + epoch))};
}

inline OwnershipRecord sample_record(std::uint32_t epoch, RecordFact fact,
                                     RecordWriter writer = sample_writer()) {
  return {Epoch{epoch}, std::move(writer), std::move(fact)};
}

inline RunningFact runs() {
  return {RunningFact::Meaning::runs};
}
inline RunningFact never_ran() {
  return {RunningFact::Meaning::never};
}

inline ReleasedFact releases_nothing() {
  return {};
}
inline ReleasedFact releases_image(std::uint32_t epoch = 0) {
  return {GuestState{sample_image(epoch), std::nullopt, {}}};
}
inline ReleasedFact releases_memory(char host = 'a', int vmm = 1, int boot = 1) {
  return {GuestState{std::nullopt, StoppedVmm{sample_host(host, boot), sample_vmm(vmm)}, {}}};
}

}  // namespace pageferry::testing_support
