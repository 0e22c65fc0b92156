// A mutation that is about what a record says changes the snapshot that the rules see.
#include "sim/hand_off_question.h"

#include <map>
#include <utility>

#include "fakes/ownership_samples.h"

namespace pageferry::testing_support {
namespace {

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

}  // namespace

// decide() builds records full of text; the same few thousand questions come up millions of times.
Answer ask_once(const Question& question, Mutation mutation) {
  static std::map<std::pair<Mutation, decltype(Question().key())>, Answer> answers;
  const auto key = std::pair(mutation, question.key());
  const auto known = answers.find(key);
  if (known != answers.end()) return known->second;
  return answers.emplace(key, ask(question, mutation)).first->second;
}

Answer state_for_top(const Question& question, Mutation mutation) {
  const auto snapshot = snapshot_of(question.read, question.host, question.boot, mutation);
  const GuestState state = image_for(snapshot, snapshot.highest());
  return {Action::wait, image_number(state.image), vmm_number(state.memory)};
}

}  // namespace pageferry::testing_support
