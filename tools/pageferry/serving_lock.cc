// Names are looked for by what they look like: an epoch in decimal digits between two fixed parts. Another VM whose name begins the same
// has more than digits there.
#include "tools/pageferry/serving_lock.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

namespace pageferry {
namespace {

std::string serving_name(const std::string& vm_name, Epoch epoch) {
  return fmt::format("{}.serving.{}", vm_name, raw(epoch));
}

// File names <vm>.serving.<digits><ending>, without the ending.
std::vector<std::string> serving_files(const std::string& run_directory, const std::string& vm_name,
                                       std::string_view ending) {
  const std::string begin = vm_name + ".serving.";
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(run_directory, ignored)) {
    std::string name = entry.path().filename().string();
    if (!name.starts_with(begin) || !name.ends_with(ending)) continue;
    if (name.size() <= begin.size() + ending.size()) continue;
    name.resize(name.size() - ending.size());
    const bool digits = std::all_of(name.begin() + static_cast<std::ptrdiff_t>(begin.size()),
                                    name.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (digits) names.push_back(std::move(name));
  }
  return names;
}

}  // namespace

Result<ServingLock> ServingLock::acquire(const std::string& run_directory,
                                         const std::string& vm_name, Epoch epoch) {
  PF_ASSIGN(VmLock lock, VmLock::acquire(run_directory, serving_name(vm_name, epoch)));
  return ServingLock(std::move(lock));
}

ServingLock::~ServingLock() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

std::vector<std::string> serving_lock_names(const std::string& run_directory,
                                            const std::string& vm_name) {
  return serving_files(run_directory, vm_name, ".lock");
}

std::string serving_socket_path(const std::string& run_directory, const std::string& vm_name,
                                Epoch epoch) {
  return fmt::format("{}/{}.sock", run_directory, serving_name(vm_name, epoch));
}

std::vector<std::string> serving_socket_paths(const std::string& run_directory,
                                              const std::string& vm_name) {
  std::vector<std::string> paths;
  for (const std::string& name : serving_files(run_directory, vm_name, ".sock")) {
    paths.push_back(fmt::format("{}/{}.sock", run_directory, name));
  }
  return paths;
}

}  // namespace pageferry
