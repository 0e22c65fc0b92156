// describe_machine: one pass of queries, reduced to what two QEMUs must have in common. What
// differs between any two processes (host addresses, automatic names that begin with '#',
// statistics) is left out here, so that the comparison needs no exceptions.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdint>

#include "vmstate/qemu_machine.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr std::size_t kDevicesMax = 4096;
constexpr int kBackingDepthMax = 256;

// What of a device is compared, or needed to make it again. "legacy-addr" is the PCI address as
// text in every version ("addr" is a number in some).
constexpr std::array<std::string_view, 37> kProperties = {"parent_bus",
                                                          "legacy-addr",
                                                          "multifunction",
                                                          "mac",
                                                          "netdev",
                                                          "drive",
                                                          "chardev",
                                                          "serial",
                                                          "wwn",
                                                          "lun",
                                                          "scsi-id",
                                                          "channel",
                                                          "nr",
                                                          "name",
                                                          "num-queues",
                                                          "num_queues",
                                                          "mq",
                                                          "queue-size",
                                                          "max_ports",
                                                          "host_mtu",
                                                          "memdev",
                                                          "node",
                                                          "slot",
                                                          "addr",
                                                          "size",
                                                          "port",
                                                          "chassis",
                                                          "bootindex",
                                                          "socket-id",
                                                          "die-id",
                                                          "module-id",
                                                          "core-id",
                                                          "thread-id",
                                                          "disable-legacy",
                                                          "disable-modern",
                                                          "guest-cid",
                                                          "free-page-hint"};

class MachineQuery {
 public:
  MachineQuery(QmpClient& qmp, Deadline deadline) : qmp_(qmp), deadline_(deadline) {}

  Result<json> ask(std::string_view command, json arguments = json::object()) {
    return qmp_.execute(command, std::move(arguments), deadline_);
  }
  // null where this QEMU does not have it.
  Result<json> ask_if_known(std::string_view command, json arguments = json::object()) {
    auto reply = ask(command, std::move(arguments));
    if (!reply && reply.error().code == Errc::vmm) return json();
    return reply;
  }
  Result<json> property(const std::string& path, std::string_view name) {
    return ask_if_known("qom-get", {{"path", path}, {"property", std::string(name)}});
  }

  Result<json> devices();
  Result<json> memory_backends();
  Result<json> ram_blocks();
  Result<json> cpus();
  Result<json> cpu_features(const std::string& cpu_path);

 private:
  Result<json> device(const std::string& container, const std::string& name,
                      const std::string& type);
  Result<json> properties_of(const std::string& path);

  QmpClient& qmp_;
  const Deadline deadline_;
};

std::string text_in(const json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : "";
}

// "child<pc-dimm>" -> "pc-dimm"; "" for anything else.
std::string child_type(const json& entry) {
  constexpr std::string_view kChild = "child<";
  const std::string type = text_in(entry, "type");
  if (!type.starts_with(kChild) || type.back() != '>') return "";
  return type.substr(kChild.size(), type.size() - kChild.size() - 1);
}

bool is_automatic_name(const json& value) {
  return value.is_string() && value.get_ref<const std::string&>().starts_with("#");
}

Result<json> MachineQuery::properties_of(const std::string& path) {
  PF_ASSIGN(const json listed, ask("qom-list", {{"path", path}}));
  json properties = json::object();
  for (const json& entry : listed) {
    const std::string name = text_in(entry, "name");
    if (std::find(kProperties.begin(), kProperties.end(), name) == kProperties.end()) continue;
    PF_ASSIGN(json value, property(path, name));
    if (!value.is_null() && !is_automatic_name(value)) properties[name] = std::move(value);
  }
  // A PCI address is in legacy-addr; "addr" of other devices (a DIMM's) stays.
  if (properties.contains("legacy-addr")) properties.erase("addr");
  return properties;
}

Result<json> MachineQuery::device(const std::string& container, const std::string& name,
                                  const std::string& type) {
  const std::string path = container + "/" + name;
  PF_ASSIGN(json properties, properties_of(path));
  PF_ASSIGN(const json hotplugged, property(path, "hotplugged"));
  json device = {{"path", path}, {"type", type}, {"properties", std::move(properties)}};
  if (container == "/machine/peripheral") device["id"] = name;
  device["hotplugged"] = hotplugged.is_boolean() && hotplugged.get<bool>();
  return device;
}

Result<json> MachineQuery::devices() {
  json devices = json::array();
  for (const char* container : {"/machine/peripheral", "/machine/peripheral-anon"}) {
    PF_ASSIGN(const json listed, ask("qom-list", {{"path", container}}));
    for (const json& entry : listed) {
      const std::string type = child_type(entry);
      if (type.empty()) continue;
      if (devices.size() >= kDevicesMax)
        return fail(Errc::unsupported, fmt::format("more than {} devices", kDevicesMax));
      PF_ASSIGN(json described, device(container, text_in(entry, "name"), type));
      devices.push_back(std::move(described));
    }
  }
  return devices;
}

Result<json> MachineQuery::memory_backends() {
  PF_ASSIGN(const json listed, ask("qom-list", {{"path", "/objects"}}));
  json backends = json::array();
  for (const json& entry : listed) {
    const std::string type = child_type(entry);
    if (!type.starts_with("memory-backend")) continue;
    const std::string id = text_in(entry, "name");
    json backend = {{"id", id}, {"type", type}};
    for (const char* name : {"size", "share", "prealloc", "mem-path", "hugetlb", "hugetlbsize",
                             "policy", "host-nodes"}) {
      PF_ASSIGN(json value, property("/objects/" + id, name));
      if (!value.is_null()) backend[name] = std::move(value);
    }
    backends.push_back(std::move(backend));
  }
  return backends;
}

// "NAME  4 KiB  0x... 0x... 0x...": the name may hold spaces, so the page size ("N unit") is what
// it is found by.
json ram_block_in(std::string_view line) {
  std::vector<std::string> words;
  for (std::size_t at = 0; (at = line.find_first_not_of(" \t\r", at)) != std::string_view::npos;) {
    const auto end = std::min(line.find_first_of(" \t\r", at), line.size());
    words.emplace_back(line.substr(at, end - at));
    at = end;
  }
  for (std::size_t i = 1; i + 4 < words.size(); ++i) {
    if (!words[i + 1].ends_with("B") || !words[i + 2].starts_with("0x")) continue;
    std::uint64_t total = 0;
    const std::string& digits = words[i + 4];
    const auto [end, error] =
        std::from_chars(digits.data() + 2, digits.data() + digits.size(), total, 16);
    if (error != std::errc() || end != digits.data() + digits.size()) return nullptr;
    std::string name = words[0];
    for (std::size_t part = 1; part < i; ++part) name += " " + words[part];
    return {{"name", name}, {"bytes-max", total}, {"page", words[i] + " " + words[i + 1]}};
  }
  return nullptr;
}

Result<json> MachineQuery::ram_blocks() {
  PF_ASSIGN(const json reply,
            ask_if_known("human-monitor-command", {{"command-line", "info ramblock"}}));
  if (!reply.is_string()) return json();
  json blocks = json::array();
  const std::string& text = reply.get_ref<const std::string&>();
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find('\n', at), text.size());
    json block = ram_block_in(std::string_view(text).substr(at, end - at));
    if (!block.is_null()) blocks.push_back(std::move(block));
    at = end + 1;
  }
  return blocks;
}

Result<json> MachineQuery::cpus() {
  PF_ASSIGN(const json hotpluggable, ask_if_known("query-hotpluggable-cpus"));
  json cpus = json::array();
  if (hotpluggable.is_array()) {
    for (const json& slot : hotpluggable) {
      cpus.push_back({{"type", slot.value("type", "")},
                      {"props", slot.value("props", json::object())},
                      {"present", slot.contains("qom-path")},
                      {"path", slot.value("qom-path", "")}});
    }
    return cpus;
  }
  PF_ASSIGN(const json fast, ask("query-cpus-fast"));  // a board without CPU slots
  for (const json& cpu : fast) {
    cpus.push_back({{"type", cpu.value("target", "")},
                    {"props", cpu.value("props", json::object())},
                    {"present", true},
                    {"path", cpu.value("qom-path", "")}});
  }
  return cpus;
}

// {"eax=7 ecx=0 EBX": bits, ...}: what CPUID tells the guest, zero words left out. null where the
// architecture has no such words.
Result<json> MachineQuery::cpu_features(const std::string& cpu_path) {
  PF_ASSIGN(const json words, property(cpu_path, "feature-words"));
  if (!words.is_array()) return json();
  json features = json::object();
  for (const json& word : words) {
    const auto bits = word.value("features", std::uint64_t{0});
    if (bits == 0) continue;
    const std::string ecx = word.contains("cpuid-input-ecx")
                                ? fmt::format(" ecx={}", word["cpuid-input-ecx"].dump())
                                : "";
    features[fmt::format("eax={}{} {}", word.value("cpuid-input-eax", std::uint64_t{0}), ecx,
                         word.value("cpuid-register", ""))] = bits;
  }
  return features;
}

// The image and what is behind it, top first.
json images_of(const json& image) {
  json images = json::array();
  const json* at = &image;
  for (int depth = 0; at->is_object() && depth < kBackingDepthMax; ++depth) {
    images.push_back(
        {{"filename", at->value("filename", "")}, {"format", at->value("format", "")}});
    const auto backing = at->find("backing-image");
    if (backing == at->end()) break;
    at = &*backing;
  }
  return images;
}

json disks_of(const json& query_block) {
  json disks = json::array();
  for (const json& entry : query_block) {
    json disk = {{"device", text_in(entry, "device")},
                 {"qdev", text_in(entry, "qdev")},
                 {"removable", entry.value("removable", false)}};
    const auto inserted = entry.find("inserted");
    if (inserted != entry.end() && inserted->is_object()) {
      const json image = inserted->value("image", json::object());
      const json cache = inserted->value("cache", json::object());
      disk["images"] = images_of(image);
      disk["bytes"] = image.value("virtual-size", std::uint64_t{0});
      disk["read-only"] = inserted->value("ro", false);
      disk["driver"] = inserted->value("drv", "");
      disk["direct"] = cache.value("direct", false);
      const json node = inserted->value("node-name", json());
      if (!is_automatic_name(node)) disk["node-name"] = node;
    } else {
      disk["images"] = json::array();
    }
    disks.push_back(std::move(disk));
  }
  return disks;
}

// Types of what the board itself has, in order of their names.
json board_of(const json& unattached) {
  std::vector<std::string> types;
  for (const json& entry : unattached) {
    if (text_in(entry, "name").starts_with("device[")) types.push_back(child_type(entry));
  }
  std::sort(types.begin(), types.end());
  return types;
}

bool is_versioned(const std::string& type) {
  for (const char* family : {"pc-q35-", "pc-i440fx-", "virt-", "pseries-", "s390-ccw-virtio-"}) {
    if (type.starts_with(family)) return true;
  }
  for (std::size_t i = 1; i + 1 < type.size(); ++i) {
    const auto digit = [&type](std::size_t at) {
      return std::isdigit(static_cast<unsigned char>(type[at])) != 0;
    };
    if (type[i] == '.' && digit(i - 1) && digit(i + 1)) return true;
  }
  return false;
}

}  // namespace

Result<std::string> query_machine_type(QmpClient& qmp, Deadline deadline) {
  constexpr std::string_view kSuffix = "-machine";
  PF_ASSIGN(const json reply,
            qmp.execute("qom-get", {{"path", "/machine"}, {"property", "type"}}, deadline));
  std::string type = reply.is_string() ? reply.get<std::string>() : "";
  if (type.ends_with(kSuffix)) type.resize(type.size() - kSuffix.size());
  if (is_versioned(type)) return type;
  return fail(Errc::unsupported, fmt::format("machine type \"{}\" has no version: no other QEMU "
                                             "can be started as exactly the same machine",
                                             type));
}

Result<json> query_devices(QmpClient& qmp, Deadline deadline) {
  return MachineQuery(qmp, deadline).devices();
}

Result<json> describe_machine(QmpClient& qmp, Deadline deadline) try {
  MachineQuery query(qmp, deadline);
  json machine = json::object();
  PF_ASSIGN(machine["machine-type"], query_machine_type(qmp, deadline));
  machine["qemu-version"] = qmp.qemu_version();
  PF_ASSIGN(const json name, query.ask("query-name"));
  machine["name"] = name.value("name", "");
  PF_ASSIGN(const json uuid, query.ask("query-uuid"));
  machine["uuid"] = uuid.value("UUID", "");
  PF_ASSIGN(const json kvm, query.ask_if_known("query-kvm"));
  machine["kvm"] = kvm.is_object() && kvm.value("enabled", false);
  PF_ASSIGN(machine["cpus"], query.cpus());
  const std::string first_cpu =
      machine["cpus"].empty() ? "" : machine["cpus"].back().value("path", "");
  PF_ASSIGN(machine["cpu-features"], query.cpu_features(first_cpu));
  PF_ASSIGN(machine["memory"], query.ask_if_known("query-memory-size-summary"));
  PF_ASSIGN(machine["memory-devices"], query.ask_if_known("query-memory-devices"));
  PF_ASSIGN(machine["memory-backends"], query.memory_backends());
  PF_ASSIGN(machine["ram-blocks"], query.ram_blocks());
  PF_ASSIGN(machine["devices"], query.devices());
  PF_ASSIGN(const json unattached, query.ask("qom-list", {{"path", "/machine/unattached"}}));
  machine["board"] = board_of(unattached);
  PF_ASSIGN(const json block, query.ask("query-block"));
  machine["disks"] = disks_of(block);
  return machine;
} catch (const json::exception& e) {  // a member of another type than documented
  return fail(
      Errc::vmm,
      fmt::format("QEMU at {} describes its machine in a form this program does not know: {}",
                  qmp.socket_path(), e.what()));
}

}  // namespace pageferry
