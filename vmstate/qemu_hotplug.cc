// argv_with_hotplug: the command line of the start, brought up to date with what is plugged in now.
// What was plugged out is dropped by its id; what was plugged in is written as options, for the
// kinds listed below. That an option says everything about a device is not taken for granted:
// compare_machines() looks at the result.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "vmstate/qemu_command_line.h"
#include "vmstate/qemu_current_images.h"
#include "vmstate/qemu_machine.h"
#include "vmstate/qemu_option.h"

namespace pageferry {
namespace {

using nlohmann::json;

bool is_memory_backend(const QemuOption& value) {
  return value.get_or("qom-type", "").starts_with("memory-backend");
}

std::string text_of(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
  return value.dump();
}

std::string id_in_path(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

const json& list_in(const json& machine, const char* key) {
  static const json kEmpty = json::array();
  const auto value = machine.find(key);
  return value != machine.end() && value->is_array() ? *value : kEmpty;
}

struct Present {
  std::set<std::string> devices;   // ids
  std::set<std::string> backends;  // memory backend ids
  std::set<std::string> dimm_backends;
};

Present present_in(const json& machine) {
  Present present;
  for (const json& device : list_in(machine, "devices")) {
    if (device.contains("id")) present.devices.insert(text_of(device["id"]));
  }
  for (const json& backend : list_in(machine, "memory-backends"))
    present.backends.insert(backend.value("id", ""));
  for (const json& device : list_in(machine, "memory-devices")) {
    present.dimm_backends.insert(
        id_in_path(device.value("data", json::object()).value("memdev", "")));
  }
  return present;
}

// Is this option about something that was plugged out since?
Result<bool> is_unplugged(const CommandLineOption& option, const Present& present) {
  if (option.name == "device") {
    PF_ASSIGN(const QemuOption value, QemuOption::parse(option.value.value_or(""), "driver"));
    const auto id = value.get("id");
    if (id) return present.devices.count(*id) == 0;
    const std::string driver = value.get_or("driver", "");
    return driver == "pc-dimm" && present.dimm_backends.count(value.get_or("memdev", "")) == 0;
  }
  if (option.name == "object") {
    PF_ASSIGN(const QemuOption value, QemuOption::parse(option.value.value_or(""), "qom-type"));
    return is_memory_backend(value) && present.backends.count(value.get_or("id", "")) == 0;
  }
  return false;
}

// What the command line names already.
struct Named {
  std::set<std::string> devices;
  std::set<std::string> objects;
  std::set<std::string> memdevs;
  std::set<std::string> netdevs;
  std::set<std::string> blocks;
};

Result<Named> named_by(const CommandLine& command) {
  Named named;
  for (const CommandLineOption& option : command.options) {
    if (!option.value) continue;
    const auto add = [](const QemuOption& value, const char* key, std::set<std::string>& to) {
      if (const auto name = value.get(key)) to.insert(*name);
    };
    if (option.name == "device") {
      PF_ASSIGN(const QemuOption value, QemuOption::parse(*option.value, "driver"));
      add(value, "id", named.devices);
      add(value, "memdev", named.memdevs);
    } else if (option.name == "object") {
      PF_ASSIGN(const QemuOption value, QemuOption::parse(*option.value, "qom-type"));
      add(value, "id", named.objects);
    } else if (option.name == "netdev" || option.name == "nic" || option.name == "net") {
      PF_ASSIGN(const QemuOption value, QemuOption::parse(*option.value, "type"));
      add(value, "id", named.netdevs);
    } else if (option.name == "drive" || option.name == "blockdev") {
      PF_ASSIGN(const QemuOption value,
                QemuOption::parse(*option.value, option.name == "drive" ? "file" : "driver"));
      add(value, "id", named.blocks);
      add(value, "node-name", named.blocks);
    }
  }
  return named;
}

std::string member_text(const std::string& key, const json& value) {
  return fmt::format(",{}={}", key, with_doubled_commas(text_of(value)));
}

Result<std::string> backend_option(const json& backend) {
  const std::string type = backend.value("type", "");
  if (type != "memory-backend-ram" && type != "memory-backend-file" &&
      type != "memory-backend-memfd") {
    return fail(
        Errc::unsupported,
        fmt::format("hot-plugged memory backend {} is a {}, which this program cannot make again",
                    backend.value("id", "?"), type));
  }
  std::string text = fmt::format("{},id={}", type, backend.value("id", ""));
  for (const char* key : {"size", "mem-path", "share", "prealloc"}) {
    if (backend.contains(key)) text += member_text(key, backend[key]);
  }
  if (backend.value("hugetlb", false)) {
    text += ",hugetlb=on";
    if (backend.contains("hugetlbsize")) text += member_text("hugetlbsize", backend["hugetlbsize"]);
  }
  const json nodes = backend.value("host-nodes", json::array());
  const std::string policy = backend.value("policy", "default");
  if (policy != "default" && nodes.is_array() && !nodes.empty()) {
    for (const json& node : nodes) text += member_text("host-nodes", node);
    text += member_text("policy", policy);
  }
  return text;
}

Result<void> add_dimms(const json& machine, const Named& named, CommandLine& command) {
  for (const json& device : list_in(machine, "memory-devices")) {
    const json data = device.value("data", json::object());
    const std::string memdev = id_in_path(data.value("memdev", ""));
    if (named.memdevs.count(memdev) != 0) continue;
    if (device.value("type", "") != "dimm") {
      return fail(
          Errc::unsupported,
          fmt::format("hot-plugged memory device {} is a {}, which this program cannot make again",
                      data.value("id", memdev), device.value("type", "?")));
    }
    for (const json& backend : list_in(machine, "memory-backends")) {
      if (backend.value("id", "") != memdev || named.objects.count(memdev) != 0) continue;
      PF_ASSIGN(std::string text, backend_option(backend));
      command.options.push_back({"object", std::move(text)});
    }
    std::string text = "pc-dimm";
    if (data.contains("id")) text += member_text("id", data["id"]);
    text += ",memdev=" + memdev;
    for (const char* key : {"addr", "slot", "node"}) {
      if (data.contains(key)) text += member_text(key, data[key]);
    }
    command.options.push_back({"device", std::move(text)});
  }
  return {};
}

struct Kind {
  std::string_view type;
  std::vector<std::string_view> properties;
};

// Kinds that can be written as options, and what their options are besides id, bus and address.
const std::vector<Kind>& pluggable_kinds() {
  static const std::vector<Kind> kKinds = {
      {"virtio-blk-pci", {"drive", "serial", "num-queues", "queue-size", "bootindex"}},
      {"virtio-net-pci", {"netdev", "mac", "mq", "bootindex"}},
      {"e1000", {"netdev", "mac", "bootindex"}},
      {"e1000e", {"netdev", "mac", "bootindex"}},
      {"virtio-scsi-pci", {"num_queues"}},
      {"virtio-rng-pci", {}},
      {"scsi-hd", {"drive", "channel", "scsi-id", "lun", "serial", "wwn", "bootindex"}},
      {"scsi-cd", {"drive", "channel", "scsi-id", "lun", "serial", "bootindex"}},
  };
  return kKinds;
}

Unexpected cannot_plug(const json& device, const std::string& why) {
  return fail(Errc::unsupported,
              fmt::format("device {} ({}) was plugged in after the start, and {}: unplug it, or "
                          "give --incoming-command",
                          device.value("id", "without id"), device.value("type", "?"), why));
}

Result<void> check_backend(const json& device, const std::set<std::string>& named,
                           const char* key) {
  const json properties = device.value("properties", json::object());
  const std::string name = properties.value(key, "");
  if (name.empty() || named.count(name) != 0) return {};
  return cannot_plug(
      device, fmt::format("its {} \"{}\" too, which this program cannot make again", key, name));
}

Result<std::string> cpu_option(const json& device, const json& machine) {
  const std::string path = device.value("path", "");
  for (const json& cpu : list_in(machine, "cpus")) {
    if (cpu.value("path", "") != path) continue;
    std::string text = fmt::format("{},id={}", device.value("type", ""), device.value("id", ""));
    const json props = cpu.value("props", json::object());
    for (const auto& [key, value] : props.items()) text += member_text(key, value);
    return text;
  }
  return std::string();
}

Result<std::string> device_option(const json& device, const Named& named, const json& machine) {
  PF_ASSIGN(std::string cpu, cpu_option(device, machine));
  if (!cpu.empty()) return cpu;
  const std::string type = device.value("type", "");
  const auto& kinds = pluggable_kinds();
  const auto kind =
      std::find_if(kinds.begin(), kinds.end(), [&type](const Kind& k) { return k.type == type; });
  if (kind == kinds.end())
    return cannot_plug(device, "this program does not know how to write it as an option");
  PF_TRY(check_backend(device, named.netdevs, "netdev"));
  PF_TRY(check_backend(device, named.blocks, "drive"));
  const json properties = device.value("properties", json::object());
  std::string text = fmt::format("{},id={},bus={}", type, device.value("id", ""),
                                 id_in_path(properties.value("parent_bus", "")));
  if (properties.contains("legacy-addr")) text += member_text("addr", properties["legacy-addr"]);
  for (const std::string_view name : kind->properties) {
    const std::string key(name);
    if (!properties.contains(key) || properties[key] == json("") ||
        (key == "bootindex" && properties[key] == -1))
      continue;
    text += member_text(key, properties[key]);
  }
  return text;
}

Result<void> add_devices(const json& machine, const Named& named, CommandLine& command) {
  for (const json& device : list_in(machine, "devices")) {
    if (!device.value("hotplugged", false)) continue;
    const std::string id = device.value("id", "");
    const std::string type = device.value("type", "");
    if (type == "pc-dimm" || (!id.empty() && named.devices.count(id) != 0)) continue;
    if (id.empty()) return cannot_plug(device, "has no id to know it by");
    PF_ASSIGN(std::string text, device_option(device, named, machine));
    command.options.push_back({"device", std::move(text)});
  }
  return {};
}

}  // namespace

Result<std::vector<std::string>> argv_with_hotplug(const std::vector<std::string>& argv,
                                                   const json& machine) try {
  PF_ASSIGN(CommandLine command, parse_command_line(argv));
  const Present present = present_in(machine);
  std::vector<CommandLineOption> kept;
  for (CommandLineOption& option : command.options) {
    PF_ASSIGN(const bool unplugged, is_unplugged(option, present));
    if (!unplugged) kept.push_back(std::move(option));
  }
  command.options = std::move(kept);
  PF_TRY(use_current_images(machine, command));
  PF_ASSIGN(const Named named, named_by(command));
  PF_TRY(add_dimms(machine, named, command));
  PF_TRY(add_devices(machine, named, command));
  return to_argv(command);
} catch (const json::exception& e) {
  return fail(Errc::invalid, fmt::format("the machine description is malformed: {}", e.what()));
}

}  // namespace pageferry
