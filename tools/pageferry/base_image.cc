// The records say which commit an attempt has, the page file says it too, and both must agree with what the VMM says it was restored from.
#include "tools/pageferry/base_image.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "pager/page_file_bases.h"
#include "pager/page_file_reader.h"
#include "tools/pageferry/attempt_files.h"

namespace pageferry {
namespace {

// The released image whose attempt has that id, newest first: every epoch may release it again.
Result<ImageRef> released_with_id(const OwnershipSnapshot& snapshot, const std::string& id) {
  for (auto records = snapshot.epochs.rbegin(); records != snapshot.epochs.rend(); ++records) {
    const GuestState* state = records->released_state();
    if (state == nullptr || !state->image) continue;
    const auto name = parse_attempt_name(state->image->attempt);
    if (name && name->id.hex() == id) return *state->image;
  }
  return fail(Errc::not_found, fmt::format("no release of this VM names an attempt {}", id));
}

Result<PageFileImage> load_base(const Attempt& attempt, const RandomId& commit,
                                const WaitBounds& bounds) {
  PF_ASSIGN(const std::unique_ptr<StorageFile> file, open_pages_to_read(attempt));
  PF_ASSIGN(PageFileImage image,
            PageFileImage::load(*file, PageFileReaderOptions{}.map_bytes_max, bounds));
  if (to_hex(image.record.commit_id) != commit.hex()) {
    return fail(Errc::corrupt, fmt::format("page file: commit {}, the release names {}",
                                           to_hex(image.record.commit_id), commit.hex()));
  }
  PF_ASSIGN([[maybe_unused]] const PageFileBases its_own,
            PageFileBases::open(image.header, bases_in(attempt), bounds));
  return image;
}

// What the file is called in the directory of the base image: itself, or a base of it.
std::string name_in_base(const BaseImage& base, const PageFileBase& file) {
  return file.commit_id == base.image.record.commit_id ? kPagesFileName : file.file_name();
}

}  // namespace

Result<BaseImage> find_base_image(const VmDirectory& directory, const OwnershipSnapshot& snapshot,
                                  const BaseChoice& choice, const std::string& tracked_since,
                                  const WaitBounds& bounds) {
  if (tracked_since.empty()) {
    return fail(Errc::unsupported, "the VMM knows of no image since which it followed every write");
  }
  BaseImage base;
  base.id = tracked_since;
  PF_ASSIGN(const ImageRef released, released_with_id(snapshot, tracked_since));
  base.attempt = released.attempt;
  if (choice.kind == BaseChoice::Kind::named && choice.attempt != base.attempt) {
    return fail(Errc::unsupported,
                fmt::format("the VMM followed every write since {}, not since {}", base.attempt,
                            choice.attempt));
  }
  PF_ASSIGN(const Attempt attempt, directory.open_attempt(base.attempt));
  auto image = load_base(attempt, released.commit, bounds);
  if (!image) return with_context(std::move(image).error(), base.attempt);
  base.image = std::move(*image);
  auto plan = plan_bases(base.image);
  if (!plan) return with_context(std::move(plan).error(), base.attempt);
  base.plan = std::move(*plan);
  return base;
}

Result<void> link_bases(const VmDirectory& directory, const BaseImage& base, const Attempt& to) {
  PF_ASSIGN(const Attempt from, directory.open_attempt(base.attempt));
  for (const PageFileBase& file : base.plan.bases) {
    const std::string old_name = name_in_base(base, file);
    // A symlink under that name would be linked as one, and never followed by a reader.
    if (::linkat(from.directory.get(), old_name.c_str(), to.directory.get(),
                 file.file_name().c_str(), 0) == 0) {
      continue;
    }
    const int link_errno = errno;
    unlink_bases(base.plan, to);
    return syscall_error("link", base.attempt + "/" + old_name, link_errno);
  }
  if (::fsync(to.directory.get()) == 0) return {};
  const int sync_errno = errno;
  unlink_bases(base.plan, to);
  return syscall_error("fsync", to.name, sync_errno);
}

// What stays is removed with the attempt.
void unlink_bases(const BasePlan& plan, const Attempt& from) {
  for (const PageFileBase& file : plan.bases) {
    ::unlinkat(from.directory.get(), file.file_name().c_str(), 0);
  }
}

std::vector<ManifestBase> manifest_bases(const BasePlan& plan) {
  std::vector<ManifestBase> bases;
  for (const PageFileBase& file : plan.bases) bases.push_back({file.file_name(), file.file_bytes});
  return bases;
}

Result<void> check_bases_are_there(const Attempt& attempt, const VmManifest& manifest) {
  for (const ManifestBase& base : manifest.bases) {
    const std::string path = attempt.name + "/" + base.file;
    struct stat status {};
    if (::fstatat(attempt.directory.get(), base.file.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
      return syscall_error("stat", path);
    }
    const auto bytes = static_cast<std::uint64_t>(status.st_size);
    if (S_ISREG(status.st_mode) && bytes >= base.file_bytes) continue;
    return fail(Errc::corrupt, fmt::format("{}: {} bytes, at least {} in a regular file", path,
                                           bytes, base.file_bytes));
  }
  return {};
}

}  // namespace pageferry
