// BaseImage: an image of an earlier move on the store, of which a new one writes only what changed since (--base). Here it is
// found, checked and made available to the new attempt: each file that the new one will need gets a hard link in its directory.
// So no attempt needs another's directory, and whoever drops an image takes nothing away from a newer one. No committed file is
// ever written again.
//
// Nothing here can harm the guest: whatever is wrong with the base is a reason to write everything.
//
// Thread rule: functions without state; the value belongs to one thread at a time.
#pragma once

#include <string>
#include <vector>

#include "pager/base_plan.h"
#include "pager/page_file_image.h"
#include "tools/pageferry/options.h"
#include "transport/hand_off_rules.h"
#include "transport/os/error.h"
#include "transport/storage_wait.h"
#include "transport/vm_directory.h"
#include "vmstate/manifest.h"

namespace pageferry {

struct BaseImage {
  std::string attempt;  // name of its directory
  std::string id;       // as the VMM knows it: the last part of that
  PageFileImage image;
  BasePlan plan;
};

// The image that the guest was restored from, `tracked_since` being what its VMM says: released by an epoch of this VM, its page
// file with that commit, whole in its map, and every base of it there. Its pages are not read. Errors, one line each: unsupported
// (the VMM knows none, or another than was chosen; too little would be kept of it), not_found (no release names it, or it was
// dropped), corrupt, those of the bounds.
Result<BaseImage> find_base_image(const VmDirectory& directory, const OwnershipSnapshot& snapshot,
                                  const BaseChoice& choice, const std::string& tracked_since,
                                  const WaitBounds& bounds);

// Links every file of the plan into the attempt's directory; durable on return. Errors: not_found (dropped meanwhile),
// unsupported and io (a store that does not link); nothing is left behind then.
Result<void> link_bases(const VmDirectory& directory, const BaseImage& base, const Attempt& to);
void unlink_bases(const BasePlan& plan, const Attempt& from);

std::vector<ManifestBase> manifest_bases(const BasePlan& plan);
// Before anything is loaded: not_found and corrupt name the base that is missing or too short.
Result<void> check_bases_are_there(const Attempt& attempt, const VmManifest& manifest);

}  // namespace pageferry
