// The table that `info ramblock` prints, as 7.2 and 10.0 print it, and what a restore concludes from it.
#include "vmstate/qemu_ram_blocks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pageferry {
namespace {

using testing::HasSubstr;

constexpr std::string_view kQemu7 =
    "              Block Name    PSize              Offset               Used              Total\n"
    "                  pc.ram    4 KiB  0x0000000000000000 0x0000000020001000 0x0000000020001000\n"
    "    /rom@etc/acpi/tables    4 KiB  0x0000000020080000 0x0000000000020000 0x0000000000200000\n";

constexpr std::string_view kQemu10 =
    "              Block Name    PSize              Offset               Used              Total "
    "               HVA  RO\n"
    "                  pc.ram    2 MiB  0x0000000000000000 0x0000000080000000 0x0000000080000000 "
    "0x00007f5e33e00000  rw\n"
    "                pc.bios    4 KiB  0x0000000080000000 0x0000000000040000 0x0000000000040000 "
    "0x00007f5eb4200000  ro\n";

TEST(QemuRamBlocks, ReadsTheTableOfQemu7) {
  const auto blocks = parse_ram_blocks(kQemu7);
  ASSERT_TRUE(blocks) << blocks.error().message;
  ASSERT_EQ(blocks->size(), 2U);
  EXPECT_EQ((*blocks)[1],
            (QemuRamBlock{"/rom@etc/acpi/tables", 4096, 0x20000, 0x200000, std::nullopt}));
}

TEST(QemuRamBlocks, ReadsTheTableOfQemu10WithHugePages) {
  const auto blocks = parse_ram_blocks(kQemu10);
  ASSERT_TRUE(blocks) << blocks.error().message;
  ASSERT_EQ(blocks->size(), 2U);
  EXPECT_EQ((*blocks)[0],
            (QemuRamBlock{"pc.ram", 2 << 20, 0x80000000, 0x80000000, 0x7f5e33e00000}));
}

TEST(QemuRamBlocks, ReadsNamesWithBlanks) {
  const auto blocks = parse_ram_blocks(
      "Block Name PSize Offset Used Total\n my dimm 0  1 GiB 0x0 0x40000000 0x40000000\n");
  ASSERT_TRUE(blocks) << blocks.error().message;
  EXPECT_EQ(blocks->front().name, "my dimm 0");
  EXPECT_EQ(blocks->front().page_bytes, 1U << 30);
}

TEST(QemuRamBlocks, RefusesALineThatIsNoBlock) {
  const auto blocks = parse_ram_blocks("Block Name\nunknown command: 'info ramblock'\n");
  ASSERT_FALSE(blocks);
  EXPECT_EQ(blocks.error().code, Errc::vmm);
  EXPECT_THAT(blocks.error().message, HasSubstr("unknown command"));
}

TEST(QemuRamBlocks, RefusesAnUnknownUnit) {
  EXPECT_FALSE(parse_ram_blocks("Block Name\n pc.ram 4 TiB 0x0 0x1000 0x1000\n"));
}

MemoryLayout captured(std::string name, std::uint64_t bytes) {
  auto layout = MemoryLayout::make({RamBlock{.name = std::move(name), .length_bytes = bytes}});
  EXPECT_TRUE(layout);
  return *layout;
}

TEST(QemuRamBlocks, TheDestinationsPageSizesReplaceTheCaptured) {
  const auto layout =
      layout_at_destination(captured("pc.ram", 4 << 20), {{"pc.ram", 2 << 20, 4 << 20, 4 << 20}});
  ASSERT_TRUE(layout) << layout.error().message;
  EXPECT_EQ(layout->blocks().front().backing_page_bytes, 2U << 20);
}

TEST(QemuRamBlocks, ABlockMayBeSmallerThanItMayBecome) {
  EXPECT_TRUE(layout_at_destination(captured("acpi", 1 << 16), {{"acpi", 4096, 4096, 1 << 21}}));
}

TEST(QemuRamBlocks, RefusesADestinationWithoutTheBlock) {
  const auto layout =
      layout_at_destination(captured("dimm1", 4096), {{"pc.ram", 4096, 4096, 4096}});
  ASSERT_FALSE(layout);
  EXPECT_THAT(layout.error().message, HasSubstr("no RAM block 'dimm1'"));
}

TEST(QemuRamBlocks, RefusesADestinationWithLessMemory) {
  const auto layout =
      layout_at_destination(captured("pc.ram", 8192), {{"pc.ram", 4096, 4096, 4096}});
  ASSERT_FALSE(layout);
  EXPECT_THAT(layout.error().message, HasSubstr("has 8192 bytes, at the destination only 4096"));
}

TEST(QemuRamBlocks, RefusesABlockThatIsNoMultipleOfTheDestinationsPages) {
  EXPECT_FALSE(
      layout_at_destination(captured("pc.ram", 3 << 20), {{"pc.ram", 2 << 20, 4 << 20, 4 << 20}}));
}

}  // namespace
}  // namespace pageferry
