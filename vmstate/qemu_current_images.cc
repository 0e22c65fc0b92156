// Only what certainly changed is touched: QEMU gives the file name back as it was given, so another text is another image. Names that QEMU
// put together itself ("json:{...}") say nothing, and are left for the comparison to find.
#include "vmstate/qemu_current_images.h"

#include "vmstate/qemu_option.h"

namespace pageferry {
namespace {

using nlohmann::json;

// The description of the drive with this name; nullptr if the machine has none.
const json* disk_named(const json& machine, const std::string& name) {
  const auto disks = machine.find("disks");
  if (disks == machine.end() || !disks->is_array()) return nullptr;
  for (const json& disk : *disks) {
    if (disk.value("device", "") == name) return &disk;
  }
  return nullptr;
}

// True if the option was changed.
bool use_image(const json& disk, QemuOption& value) {
  const json images = disk.value("images", json::array());
  if (images.empty()) {
    if (!disk.value("removable", false) || !value.has("file")) return false;
    value.erase("file");  // ejected
    value.erase("format");
    return true;
  }
  const std::string now = images[0].value("filename", "");
  if (now.empty() || now.starts_with("json:") || now == value.get_or("file", "")) return false;
  if (!value.has("file") && !disk.value("removable", false))
    return false;  // spelled out as file.driver=..., file.filename=...
  value.set("file", now);
  value.set("format", images[0].value("format", "raw"));
  return true;
}

}  // namespace

Result<void> use_current_images(const json& machine, CommandLine& command) {
  for (CommandLineOption& option : command.options) {
    if (option.name != "drive" || !option.value) continue;
    PF_ASSIGN(QemuOption value, QemuOption::parse(*option.value, "file"));
    const auto id = value.get("id");
    const json* disk = id ? disk_named(machine, *id) : nullptr;
    if (disk != nullptr && use_image(*disk, value)) option.value = value.text();
  }
  return {};
}

}  // namespace pageferry
