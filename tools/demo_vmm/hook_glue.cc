// Three parts: what the memory is, what the hook may ask for, and what the VMM must tell it.
#include "tools/demo_vmm/hook_glue.h"

#include <fmt/core.h>

#include <array>
#include <cerrno>

namespace pageferry::demo {
namespace {

// Callbacks answer with an errno value; the words go to the log.
int answer(std::string_view what, const Result<void>& result) {
  if (result) return 0;
  fmt::print(stderr, "demo_vmm: {}: {}\n", what, result.error().message);
  return -EIO;
}

// A command as the C interface wants it: ends with a null pointer; empty: none.
std::vector<const char*> argv_of(const std::vector<std::string>& words) {
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  argv.push_back(nullptr);
  return argv;
}

}  // namespace

// 1. The memory. Order, names and sizes are the same in every VMM that was started with the same numbers.
std::vector<pageferry_memory_slot> HookGlue::slots() const {
  std::vector<pageferry_memory_slot> slots;
  for (const MemorySlot& slot : vm_.memory().slots()) {
    slots.push_back({.name = slot.name.c_str(),
                     .guest_address = slot.guest_address,
                     .size_bytes = slot.size_bytes,
                     .host_address = slot.host_address,
                     .memory_fd = vm_.memory().memory_fd(),
                     .kvm_slot = vm_.kvm_vm_fd() < 0 ? -1 : static_cast<int>(slots.size()),
                     .memory_fd_offset = slot.memory_fd_offset,
                     .backing_page_bytes = vm_.memory().backing_page_bytes()});
  }
  return slots;
}

// 2. What the hook asks for, on its own thread, one thing at a time.
pageferry_hook_callbacks HookGlue::callbacks() {
  pageferry_hook_callbacks asked{};
  asked.size_bytes = sizeof asked;
  // Vm::pause() stops the vCPUs first and the disk second: whoever gives work stops before whoever does it.
  asked.pause = [](void* glue) {
    return answer("pause", static_cast<HookGlue*>(glue)->vm_.pause());
  };
  asked.resume = [](void* opaque) {
    auto* const glue = static_cast<HookGlue*>(opaque);
    glue->hook_.wait(nullptr);  // the devices will need it: see start()
    return answer("resume", glue->vm_.resume());
  };
  asked.save_state = [](void* glue, pageferry_state_writer* writer) {
    const auto bytes = static_cast<HookGlue*>(glue)->vm_.save();
    if (!bytes) return answer("save", fail(Errc::vmm, bytes.error().message));
    return pageferry_state_write(writer, bytes->data(), bytes->size());
  };
  // The Vm decodes and checks everything before it changes anything, and touches no guest memory.
  asked.load_state = [](void* glue, pageferry_state_reader* reader) {
    std::vector<std::byte> bytes(pageferry_state_remaining(reader));
    const int got = pageferry_state_read(reader, bytes.data(), bytes.size());
    if (got != 0) return got;
    return answer("load", static_cast<HookGlue*>(glue)->vm_.load(bytes));
  };
  asked.moved_away = [](void* glue) { static_cast<HookGlue*>(glue)->moved_away_(); };
  return asked;
}

// 3. What the hook cannot see by itself: writes that are no vCPU's, after the write, and pages that were given back, after the hole. The
// Vm reports them while no guest runs, too; before start() there is nobody to tell and nothing to tell of.
void HookGlue::written(std::uint64_t guest_address, std::uint64_t bytes) {
  if (pageferry_hook* const hook = hook_) pageferry_hook_mark_dirty(hook, guest_address, bytes);
}

void HookGlue::given_back(std::uint64_t guest_address, std::uint64_t bytes) {
  if (pageferry_hook* const hook = hook_) pageferry_hook_discard(hook, guest_address, bytes);
}

// The hook listens as soon as it is started, and may call back before pageferry_hook_start() has returned. Therefore the listener is set
// first, and a guest that is resumed so early waits for `hook_`.
Result<std::unique_ptr<HookGlue>> HookGlue::start(Vm& vm, const HookSettings& settings,
                                                  std::function<void()> moved_away) {
  std::unique_ptr<HookGlue> glue(new HookGlue(vm, std::move(moved_away)));
  const std::string machine = vm.machine_text();
  const std::vector<pageferry_memory_slot> slots = glue->slots();
  const pageferry_hook_callbacks asked = callbacks();
  const std::vector<const char*> incoming_command = argv_of(settings.incoming_command);
  const std::vector<const char*> pager_command = argv_of(settings.pager_command);
  pageferry_hook_config config{};
  config.size_bytes = sizeof config;
  config.abi_version = PAGEFERRY_HOOK_ABI_VERSION;
  config.incoming = settings.beginning == Beginning::incoming ? 1 : 0;
  config.socket_path = settings.socket_path.c_str();
  config.vm_name = settings.vm_name.c_str();
  config.machine = machine.c_str();
  config.slots = slots.data();
  config.slot_count = slots.size();
  config.callbacks = &asked;
  config.opaque = glue.get();
  config.dirty_source = settings.dirty_source;
  config.kvm_vm_fd = vm.kvm_vm_fd();
  if (!settings.incoming_command.empty()) config.incoming_command = incoming_command.data();
  if (!settings.pager_command.empty()) config.pager_command = pager_command.data();
  vm.set_listener(glue.get());
  pageferry_hook* hook = nullptr;
  std::array<char, 512> error{};
  if (const int failed = pageferry_hook_start(&config, &hook, error.data(), error.size())) {
    vm.set_listener(nullptr);
    return fail(Errc::invalid, fmt::format("hook: {} (errno {})", error.data(), -failed));
  }
  glue->hook_ = hook;
  glue->hook_.notify_all();
  return glue;
}

// The guest stands first: no device may be in mark_dirty while the hook goes away. It cannot be made to stand while it waits for pages.
Result<void> HookGlue::stop() {
  if (hook_ == nullptr) return {};
  if (pageferry_hook_get_state(hook_) == PAGEFERRY_HOOK_RESTORING) {
    return fail(Errc::busy, "pages of the guest are still missing");
  }
  PF_TRY(vm_.pause());
  vm_.set_listener(nullptr);
  if (const int failed = pageferry_hook_stop(hook_)) {
    vm_.set_listener(this);
    return syscall_error("pageferry_hook_stop", "the guest", -failed);
  }
  hook_ = nullptr;
  return {};
}

const char* HookGlue::state_name() const {
  static constexpr std::array kNames{"running",  "moving",    "paused",    "committed",
                                     "incoming", "restoring", "moved-away"};
  return kNames.at(pageferry_hook_get_state(hook_));
}

}  // namespace pageferry::demo
