// The members of a manifest and their limits. One JSON object, since people read it and QEMU's own answers are JSON; its text is
// checked_json.h's, since a torn or edited manifest must not start a machine that is nearly the right one.
//
// Every member has a type and a limit, and a member that is not known is refused (an older program cannot know what it is for).
#include "vmstate/manifest.h"

#include <fmt/format.h>

#include <limits>

#include "pager/page.h"
#include "pager/page_file_format.h"
#include "transport/storage_file.h"
#include "vmstate/checked_json.h"
#include "vmstate/hook_protocol.h"
#include "vmstate/ram_block_json.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr CheckedJsonFormat kFormat = {.what = "manifest",
                                       .name = "pageferry-manifest",
                                       .version = kManifestVersion,
                                       .bytes_max = kManifestBytesMax};
constexpr std::size_t kNameBytesMax = 255;
constexpr std::size_t kUuidBytes = 36;
constexpr std::size_t kAttemptBytesMax = 64;
constexpr std::uint64_t kNumberMax = std::numeric_limits<std::uint64_t>::max();

json source_to_json(const VmManifest& manifest) {
  const VmmProcess& source = manifest.source;
  return {{"host", manifest.source_host},
          {"boot-id", manifest.source_boot_id},
          {"pid", source.identity.pid},
          {"start-ticks", source.identity.start_ticks},
          {"argv", source.argv},
          {"working-directory", source.working_directory},
          {"uid", source.uid},
          {"gid", source.gid},
          {"groups", source.groups},
          {"executable", source.executable},
          {"executable-deleted", source.executable_deleted},
          {"cgroup", source.cgroup}};
}

json hook_to_json(const HookMachine& hook) {
  return {{"machine", hook.machine},
          {"socket", hook.socket},
          {"incoming-command", hook.incoming_command},
          {"guest-addresses", hook.guest_addresses}};
}

json bases_to_json(const std::vector<ManifestBase>& bases) {
  json list = json::array();
  for (const ManifestBase& base : bases) {
    list.push_back({{"file", base.file}, {"bytes", base.file_bytes}});
  }
  return list;
}

json to_json(const VmManifest& manifest) {
  json blocks = json::array();
  for (const RamBlock& block : manifest.blocks) blocks.push_back(ram_block_to_json(block));
  json object = {
      {"vm",
       {{"name", manifest.vm_name},
        {"uuid", manifest.vm_uuid},
        {"run-state", manifest.run_state == GuestRunState::running ? "running" : "paused"}}},
      {"attempt", {{"id", manifest.attempt_id}, {"epoch", manifest.epoch}}},
      {"source", source_to_json(manifest)},
      {"page-bytes", manifest.page_bytes},
      {"blocks", std::move(blocks)}};
  if (!manifest.bases.empty()) object["bases"] = bases_to_json(manifest.bases);
  if (manifest.hook) {
    object["hook"] = hook_to_json(*manifest.hook);
  } else {
    object["qemu-version"] = manifest.qemu_version;
    object["machine-type"] = manifest.machine_type;
    object["machine"] = manifest.machine;
  }
  return object;
}

Result<void> vm_from_json(const json& object, VmManifest& manifest) {
  JsonMembers vm(object, kFormat, "vm");
  manifest.vm_name = vm.text("name", 1, kNameBytesMax);
  manifest.vm_uuid = vm.text("uuid", kUuidBytes, kUuidBytes);
  const std::string state = vm.text("run-state", 1, kNameBytesMax);
  if (state != "running" && state != "paused")
    vm.wrong("run-state", "is neither running nor paused");
  manifest.run_state = state == "paused" ? GuestRunState::paused : GuestRunState::running;
  return vm.finish();
}

Result<void> attempt_from_json(const json& object, VmManifest& manifest) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-";
  JsonMembers attempt(object, kFormat, "attempt");
  manifest.attempt_id = attempt.text("id", 1, kAttemptBytesMax);
  if (manifest.attempt_id.find_first_not_of(kAllowed) != std::string::npos) {
    attempt.wrong("id", "has other characters than letters, digits and dashes");
  }
  manifest.epoch = attempt.number("epoch", 0, kNumberMax);
  return attempt.finish();
}

Result<void> source_from_json(const json& object, VmManifest& manifest) {
  JsonMembers source(object, kFormat, "source");
  VmmProcess& process = manifest.source;
  manifest.source_host = source.text("host", 1, kHostNameBytesMax);
  manifest.source_boot_id = source.text("boot-id", kUuidBytes, kUuidBytes);
  process.identity.pid = static_cast<int>(source.number("pid", 1, kPidMax));
  process.identity.start_ticks = source.number("start-ticks", 0, kNumberMax);
  process.argv = source.texts("argv", 1, kArgumentsMax, kArgumentBytesMax);
  process.working_directory = source.text("working-directory", 1, kPathBytesMax);
  process.uid = static_cast<std::uint32_t>(source.number("uid", 0, kIdMax));
  process.gid = static_cast<std::uint32_t>(source.number("gid", 0, kIdMax));
  process.groups = source.ids("groups", kGroupsMax);
  process.executable = source.text("executable", 1, kPathBytesMax);
  process.executable_deleted = source.flag("executable-deleted");
  process.cgroup = source.text("cgroup", 0, kPathBytesMax);
  if (!process.executable.empty() && process.executable.front() != '/')
    source.wrong("executable", "is no absolute path");
  if (!process.working_directory.empty() && process.working_directory.front() != '/') {
    source.wrong("working-directory", "is no absolute path");
  }
  return source.finish();
}

Result<void> blocks_from_json(const json& list, VmManifest& manifest) {
  for (std::size_t i = 0; i < list.size(); ++i) {
    JsonMembers block(list[i], kFormat, fmt::format("blocks[{}]", i));
    RamBlock read = read_ram_block(block);
    PF_TRY(block.finish());
    manifest.blocks.push_back(std::move(read));
  }
  if (manifest.blocks.empty()) return {};
  const auto layout = MemoryLayout::make(manifest.blocks);
  if (!layout) return with_context(layout.error(), "manifest member blocks");
  return {};
}

Result<void> hook_from_json(const json& object, std::size_t blocks, VmManifest& manifest) {
  JsonMembers members(object, kFormat, "hook");
  HookMachine hook;
  hook.machine = members.text("machine", 1, hook_protocol::kMachineBytesMax);
  hook.socket = members.text("socket", 1, kPathBytesMax);
  if (!hook.socket.empty() && hook.socket.front() != '/') {
    members.wrong("socket", "is no absolute path");
  }
  hook.incoming_command = members.texts("incoming-command", 0, hook_protocol::kCommandWordsMax,
                                        hook_protocol::kCommandBytesMax);
  const json& addresses = members.list("guest-addresses", blocks, blocks);
  for (const json& address : addresses) {
    if (!address.is_number_unsigned()) {
      members.wrong("guest-addresses", "has something that is no address");
      break;
    }
    hook.guest_addresses.push_back(address.get<std::uint64_t>());
  }
  PF_TRY(members.finish());
  manifest.hook = std::move(hook);
  return {};
}

Result<void> bases_from_json(const json& list, VmManifest& manifest) {
  for (std::size_t i = 0; i < list.size(); ++i) {
    JsonMembers members(list[i], kFormat, fmt::format("bases[{}]", i));
    ManifestBase base;
    base.file = members.text("file", 1, kBaseFileNameBytes);
    if (!is_base_file_name(base.file)) members.wrong("file", "is not base. and 32 hex digits");
    base.file_bytes = members.number("bytes", kFileBlockBytes, kFileBytesMax);
    PF_TRY(members.finish());
    manifest.bases.push_back(std::move(base));
  }
  return {};
}

Result<VmManifest> from_json(const json& object) {
  VmManifest manifest;
  JsonMembers top(object, kFormat, "");
  const json& vm = top.object("vm");
  const json& attempt = top.object("attempt");
  const json& source = top.object("source");
  const bool has_hook = object.contains("hook");
  const json& hook = has_hook ? top.object("hook") : object;
  if (!has_hook) {
    constexpr std::uint64_t kVersionMax = 1'000'000;
    manifest.qemu_version = static_cast<std::uint32_t>(top.number("qemu-version", 0, kVersionMax));
    manifest.machine_type = top.text("machine-type", 1, kNameBytesMax);
    manifest.machine = top.object("machine");
  }
  manifest.page_bytes =
      static_cast<std::uint32_t>(top.number("page-bytes", kPageSizeBytes, kPageSizeBytes));
  const json& blocks = top.list("blocks", 0, kBlocksMax);
  const json bases =
      object.contains("bases") ? top.list("bases", 1, kBasesMax) : json(json::array());
  PF_TRY(top.finish());
  PF_TRY(vm_from_json(vm, manifest));
  PF_TRY(attempt_from_json(attempt, manifest));
  PF_TRY(source_from_json(source, manifest));
  PF_TRY(blocks_from_json(blocks, manifest));
  PF_TRY(bases_from_json(bases, manifest));
  if (has_hook) PF_TRY(hook_from_json(hook, manifest.blocks.size(), manifest));
  return manifest;
}

}  // namespace

Result<std::string> encode_manifest(const VmManifest& manifest) {
  auto text = encode_checked_json(to_json(manifest), kFormat);
  if (!text) {
    return fail(
        Errc::invalid,
        fmt::format("manifest of {} cannot be written: {} (paths and arguments must be UTF-8)",
                    manifest.vm_name, text.error().message));
  }
  const auto check = decode_manifest(*text);  // what would be refused later is not written at all
  if (!check) return fail(Errc::invalid, check.error().message);
  return text;
}

Result<VmManifest> decode_manifest(std::string_view text) {
  PF_ASSIGN(const json object, decode_checked_json(text, kFormat));
  return from_json(object);
}

}  // namespace pageferry
