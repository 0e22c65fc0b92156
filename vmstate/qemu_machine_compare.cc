// compare_machines: what is compared, and how the difference is said. Features of the CPU may be
// more at the destination, never less; everything else must be equal.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "vmstate/qemu_machine.h"

namespace pageferry {
namespace {

using nlohmann::json;
using Differences = std::vector<std::string>;

constexpr std::size_t kShownMax = 200;

std::string shown(const json& value) {
  std::string text = value.is_string() ? value.get<std::string>()
                                       : value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kShownMax) text = text.substr(0, kShownMax) + "...";
  return text;
}

const json& member(const json& object, const std::string& key) {
  static const json kNone;
  const auto value = object.find(key);
  return value == object.end() ? kNone : *value;
}

void compare_value(const std::string& what, const json& source, const json& destination,
                   Differences& differences) {
  if (source == destination) return;
  differences.push_back(fmt::format("{}: source has {}, destination has {}", what, shown(source),
                                    shown(destination)));
}

using Keyed = std::map<std::string, json>;

// Each named thing of one side must be on the other; then its members are compared.
template <typename Compare>
void compare_keyed(const std::string& what, const Keyed& source, const Keyed& destination,
                   Differences& differences, Compare compare) {
  for (const auto& [key, value] : source) {
    const auto other = destination.find(key);
    if (other == destination.end()) {
      differences.push_back(fmt::format("{} {}: only the source has it", what, key));
    } else {
      compare(fmt::format("{} {}", what, key), value, other->second);
    }
  }
  for (const auto& [key, value] : destination) {
    if (source.find(key) == source.end())
      differences.push_back(fmt::format("{} {}: only the destination has it", what, key));
  }
}

template <typename KeyOf>
Keyed keyed(const json& list, KeyOf key_of) {
  Keyed result;
  for (const json& entry : list) {
    std::string key = key_of(entry);
    while (result.find(key) != result.end()) key += " (another)";
    result[key] = entry;
  }
  return result;
}

// A device with an id is that id; one without is its kind and its place on the bus (its number
// depends on the order of plugging).
std::string device_key(const json& device) {
  if (device.contains("id")) return shown(device["id"]);
  const json& properties = member(device, "properties");
  std::string place;
  for (const char* key : {"parent_bus", "legacy-addr", "nr", "lun"}) {
    if (properties.contains(key)) place += fmt::format(" {}={}", key, shown(properties[key]));
  }
  return fmt::format("{} without id{}", shown(member(device, "type")), place);
}

void compare_devices(const json& source, const json& destination, Differences& differences) {
  compare_keyed("device", keyed(source, device_key), keyed(destination, device_key), differences,
                [&differences](const std::string& what, const json& a, const json& b) {
                  compare_value(what + " type", member(a, "type"), member(b, "type"), differences);
                  const json& mine = member(a, "properties");
                  const json& theirs = member(b, "properties");
                  for (const auto& [key, value] : mine.items()) {
                    // Another version may lack a property altogether; the versioned machine type
                    // stands for its default.
                    if (theirs.contains(key))
                      compare_value(fmt::format("{} {}", what, key), value, theirs[key],
                                    differences);
                  }
                });
}

void compare_cpus(const json& source, const json& destination, Differences& differences) {
  const auto key = [](const json& cpu) { return shown(member(cpu, "props")); };
  compare_keyed("CPU", keyed(source, key), keyed(destination, key), differences,
                [&differences](const std::string& what, const json& a, const json& b) {
                  compare_value(what + " type", member(a, "type"), member(b, "type"), differences);
                  compare_value(what + " plugged in", member(a, "present"), member(b, "present"),
                                differences);
                });
}

void compare_cpu_features(const json& source, const json& destination, Differences& differences) {
  if (!source.is_object() || !destination.is_object()) return;  // an architecture without CPUID
  for (const auto& [word, value] : source.items()) {
    const std::uint64_t wanted = value.get<std::uint64_t>();
    const std::uint64_t there = destination.value(word, std::uint64_t{0});
    if ((wanted & ~there) == 0) continue;
    differences.push_back(fmt::format(
        "CPU features: the guest was given CPUID {} bits {:#x} that the destination's CPU lacks",
        word, wanted & ~there));
  }
}

void compare_memory_devices(const json& source, const json& destination, Differences& differences) {
  const auto key = [](const json& device) {
    return shown(member(member(device, "data"), "memdev"));
  };
  compare_keyed("memory device", keyed(source, key), keyed(destination, key), differences,
                [&differences](const std::string& what, const json& a, const json& b) {
                  for (const char* name : {"id", "addr", "size", "slot", "node"}) {
                    compare_value(fmt::format("{} {}", what, name), member(member(a, "data"), name),
                                  member(member(b, "data"), name), differences);
                  }
                });
}

void compare_ram_blocks(const json& source, const json& destination, Differences& differences) {
  if (!source.is_array() || !destination.is_array())
    return;  // a QEMU that does not tell; the stream's own list is checked later
  const auto key = [](const json& block) { return shown(member(block, "name")); };
  compare_keyed("RAM block", keyed(source, key), keyed(destination, key), differences,
                [&differences](const std::string& what, const json& a, const json& b) {
                  compare_value(what + " size", member(a, "bytes-max"), member(b, "bytes-max"),
                                differences);
                });
}

std::string images_text(const json& images) {
  std::string text;
  for (const json& image : images)
    text += (text.empty() ? "" : " on ") + shown(member(image, "filename"));
  return text.empty() ? "no medium" : text;
}

// The same with file names made absolute; "nbd://..." and "json:{...}" are no file names.
json absolute_images(json images, const std::string& working_directory) {
  for (json& image : images) {
    const std::string name = image.value("filename", "");
    const std::string scheme = name.substr(0, name.find('/'));
    if (name.empty() || name.starts_with('/') || scheme.find(':') != std::string::npos) continue;
    image["filename"] =
        (std::filesystem::path(working_directory) / name).lexically_normal().string();
  }
  return images;
}

void compare_disks(const json& source, const json& destination,
                   const std::string& working_directory, Differences& differences) {
  // By drive name where there is one, else by the device it is plugged into.
  const auto key = [](const json& disk) {
    const std::string device = shown(member(disk, "device"));
    return device.empty() ? shown(member(disk, "qdev")) : device;
  };
  compare_keyed("disk", keyed(source, key), keyed(destination, key), differences,
                [&](const std::string& what, const json& a, const json& b) {
                  const std::string mine =
                      images_text(absolute_images(member(a, "images"), working_directory));
                  const std::string theirs =
                      images_text(absolute_images(member(b, "images"), working_directory));
                  if (mine != theirs) {
                    differences.push_back(fmt::format("{}: source has {} open, destination has {}",
                                                      what, mine, theirs));
                    return;
                  }
                  for (const char* name : {"driver", "read-only", "bytes"}) {
                    compare_value(fmt::format("{} {}", what, name), member(a, name),
                                  member(b, name), differences);
                  }
                });
}

}  // namespace

std::vector<std::string> compare_machines(const json& source, const json& destination,
                                          const std::string& working_directory) try {
  Differences differences;
  for (const json* side : {&source, &destination}) {
    if (side->is_object() && side->contains("machine-type")) continue;
    return {fmt::format("the {}'s machine is not described",
                        side == &source ? "source" : "destination")};
  }
  const auto equal = [&](const char* what, const char* key) {
    compare_value(what, member(source, key), member(destination, key), differences);
  };
  equal("machine type", "machine-type");
  equal("UUID", "uuid");
  equal("KVM", "kvm");
  // How a board is nested in QOM changes between versions of QEMU; what the guest sees is in the machine type.
  if (member(source, "qemu-version") == member(destination, "qemu-version"))
    equal("board devices", "board");
  compare_cpus(member(source, "cpus"), member(destination, "cpus"), differences);
  compare_cpu_features(member(source, "cpu-features"), member(destination, "cpu-features"),
                       differences);
  equal("memory", "memory");
  compare_memory_devices(member(source, "memory-devices"), member(destination, "memory-devices"),
                         differences);
  compare_ram_blocks(member(source, "ram-blocks"), member(destination, "ram-blocks"), differences);
  compare_devices(member(source, "devices"), member(destination, "devices"), differences);
  compare_disks(member(source, "disks"), member(destination, "disks"), working_directory,
                differences);
  return differences;
} catch (const json::exception& e) {
  return {fmt::format("a machine description is malformed: {}", e.what())};
}

}  // namespace pageferry
