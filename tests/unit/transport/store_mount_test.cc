// Mount options that break the hand-off are named with the mount point and the option.
#include "transport/store_mount.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

StoreMount mount_of(const std::string& fs_type, const std::string& options) {
  return {"/mnt/store", "server:/export", fs_type, options};
}

std::string worst(const StoreMount& mount, StoreSeverity severity) {
  for (const StoreFinding& finding : judge_mount(mount)) {
    if (finding.severity == severity) return finding.message;
  }
  return {};
}

TEST(StoreMountTest, SoftNfsIsRefused) {
  const std::string message =
      worst(mount_of("nfs4", "rw,relatime,vers=4.2,soft,timeo=600"), StoreSeverity::refusal);
  EXPECT_NE(message.find("/mnt/store is NFS mounted `soft`"), std::string::npos) << message;
}

TEST(StoreMountTest, SoftErrNfsIsRefused) {
  EXPECT_NE(worst(mount_of("nfs", "rw,softerr"), StoreSeverity::refusal), "");
}

TEST(StoreMountTest, HardNfsIsNotRefused) {
  const StoreMount mount = mount_of("nfs4", "rw,hard,softreval,local_lock=none");
  EXPECT_EQ(worst(mount, StoreSeverity::refusal), "");
  EXPECT_EQ(worst(mount, StoreSeverity::warning), "");
  EXPECT_NE(worst(mount, StoreSeverity::note), "");
}

TEST(StoreMountTest, LocalLocksOnNfsAreFlagged) {
  EXPECT_NE(worst(mount_of("nfs", "rw,hard,nolock"), StoreSeverity::warning), "");
  EXPECT_NE(worst(mount_of("nfs", "rw,hard,local_lock=all"), StoreSeverity::warning), "");
}

TEST(StoreMountTest, SoftMeansNothingElsewhere) {
  EXPECT_TRUE(judge_mount(mount_of("ext4", "rw,soft")).empty());
}

TEST(StoreMountTest, MissingBarriersAreFlagged) {
  EXPECT_NE(worst(mount_of("ext4", "rw,barrier=0"), StoreSeverity::warning), "");
}

TEST(StoreMountTest, TmpfsIsFlagged) {
  EXPECT_NE(worst(mount_of("tmpfs", "rw"), StoreSeverity::warning), "");
}

}  // namespace
}  // namespace pageferry
