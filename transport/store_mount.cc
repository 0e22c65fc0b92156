// The mount is found by its id (statx), not by its path: paths can be covered by later mounts, ids
// cannot.
//
// What is judged, and why:
//   NFS soft, softerr       a request that timed out is reported as failed, yet the server may
//                           still apply it: neither a failed write nor a failed link(2) would mean
//                           anything
//   NFS nolock, local_lock  QEMU's image locks then stop at this host
//   tmpfs, ramfs            nothing survives this host
//   barriers off            a sync that returned is no promise
#include "transport/store_mount.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <libmount/libmount.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>

namespace pageferry {
namespace {

struct TableDeleter {
  void operator()(libmnt_table* table) const { mnt_unref_table(table); }
};
struct IterDeleter {
  void operator()(libmnt_iter* iter) const { mnt_free_iter(iter); }
};

std::string text_or_empty(const char* text) {
  return text == nullptr ? "" : text;
}

// The options of one mount, cut at commas.
std::vector<std::string> options_of(const StoreMount& mount) {
  std::vector<std::string> list;
  std::size_t start = 0;
  while (start <= mount.options.size()) {
    const std::size_t end = std::min(mount.options.find(',', start), mount.options.size());
    if (end > start) list.push_back(mount.options.substr(start, end - start));
    start = end + 1;
  }
  return list;
}

bool is_nfs(const StoreMount& mount) {
  return mount.fs_type == "nfs" || mount.fs_type == "nfs4";
}

void judge_nfs(const StoreMount& mount, std::vector<StoreFinding>& findings) {
  findings.push_back(
      {StoreSeverity::note,
       fmt::format("{} is NFS: the server must export it with `sync`; with `async` a "
                   "crash of the server loses what it called durable, and nothing here "
                   "can notice",
                   mount.point)});
  for (const std::string& option : options_of(mount)) {
    if (option == "soft" || option == "softerr") {
      findings.push_back(
          {StoreSeverity::refusal,
           fmt::format("{} is NFS mounted `{}`: a request that timed out may still take effect "
                       "later; mount it `hard`",
                       mount.point, option)});
    }
    if (option == "nolock" ||
        (option.rfind("local_lock=", 0) == 0 && option != "local_lock=none")) {
      findings.push_back(
          {StoreSeverity::warning,
           fmt::format("{} is NFS mounted `{}`: locks, QEMU's image locks among them, "
                       "do not reach other hosts",
                       mount.point, option)});
    }
  }
}

}  // namespace

Result<StoreMount> find_mount(int directory_fd) {
  struct statx facts {};
  if (::statx(directory_fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &facts) != 0) {
    return syscall_error("statx", "of the store");
  }
  if ((facts.stx_mask & STATX_MNT_ID) == 0) {
    return fail(Errc::unsupported, "this kernel does not tell mount ids (needs Linux 5.8)");
  }
  const std::unique_ptr<libmnt_table, TableDeleter> table(
      mnt_new_table_from_file("/proc/self/mountinfo"));
  const std::unique_ptr<libmnt_iter, IterDeleter> iter(mnt_new_iter(MNT_ITER_FORWARD));
  if (!table || !iter) return fail(Errc::io, "/proc/self/mountinfo cannot be read");
  libmnt_fs* entry = nullptr;
  while (mnt_table_next_fs(table.get(), iter.get(), &entry) == 0) {
    if (mnt_fs_get_id(entry) < 0 ||
        static_cast<std::uint64_t>(mnt_fs_get_id(entry)) != facts.stx_mnt_id) {
      continue;
    }
    return StoreMount{
        text_or_empty(mnt_fs_get_target(entry)), text_or_empty(mnt_fs_get_srcpath(entry)),
        text_or_empty(mnt_fs_get_fstype(entry)), text_or_empty(mnt_fs_get_options(entry))};
  }
  return fail(Errc::not_found, fmt::format("mount {} of the store is not in /proc/self/mountinfo",
                                           static_cast<std::uint64_t>(facts.stx_mnt_id)));
}

std::vector<StoreFinding> judge_mount(const StoreMount& mount) {
  std::vector<StoreFinding> findings;
  if (is_nfs(mount)) judge_nfs(mount, findings);
  if (mount.fs_type == "tmpfs" || mount.fs_type == "ramfs") {
    findings.push_back({StoreSeverity::warning,
                        fmt::format("{} is {}: in this host's memory, no other host sees it and "
                                    "nothing survives a restart",
                                    mount.point, mount.fs_type)});
  }
  for (const std::string& option : options_of(mount)) {
    if (option == "nobarrier" || option == "barrier=0") {
      findings.push_back(
          {StoreSeverity::warning,
           fmt::format("{} is mounted `{}`: what was synced may be lost in a power cut",
                       mount.point, option)});
    }
  }
  return findings;
}

}  // namespace pageferry
