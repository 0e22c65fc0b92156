// Goal: a good stream gives the same pages, blocks and device state however it is cut; a foreign or
// broken one is refused with a line that names what is wrong. Method: hand-made streams
// (tests/fakes/source_stream.h), one piece, every split, byte by byte; then one thing wrong at a
// time.
#include "vmstate/qemu_stream_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "fakes/memory_page_sink.h"
#include "fakes/source_stream.h"

namespace pageferry::qemu_stream {
namespace {

using fakes::MemoryPageSink;
using fakes::SourceStream;

const SourceStream::Blocks kBlocks = {{"pc.ram", 4 * kPageSizeBytes}, {"rom", 2 * kPageSizeBytes}};

class RecordedEvents : public StreamEvents {
 public:
  Result<void> on_ping(std::uint32_t value) override {
    pings.push_back(value);
    return {};
  }
  Result<void> on_setup_complete(const QemuState& state) override {
    machine_at_setup = state.machine_type;
    pages_at_setup = state.layout.pages();
    return {};
  }
  void on_ram_end() override { ++ram_ends; }

  std::vector<std::uint32_t> pings;
  std::string machine_at_setup;
  std::uint64_t pages_at_setup = 0;
  int ram_ends = 0;
};

// A parser with its surroundings, fed as a capture feeds it: unused bytes come again in front of
// the next.
struct Rig {
  MemoryPageSink sink;
  RecordedEvents events;
  StreamParser parser{events, sink};
  ByteBuffer window;

  Result<void> feed(std::span<const std::byte> bytes) {
    put_bytes(window, bytes);
    PF_ASSIGN(const std::size_t used, parser.parse(window));
    window.erase(window.begin(), window.begin() + static_cast<std::ptrdiff_t>(used));
    return {};
  }
};

SourceStream good_stream() {
  SourceStream s;
  s.setup(kBlocks);
  s.part().page("pc.ram", 0, 1).page("", 0x1000, 2).zero("", 0x2000).eos().footer();
  s.part().page("", 0x3000, 3).page("rom", 0x1000, 4).zero("", 0).eos().footer();
  s.command(Command::switchover_start);
  s.end().page("pc.ram", 0x1000, 5).eos().footer();
  s.devices();
  return s;
}

void expect_good(const Rig& rig) {
  EXPECT_TRUE(rig.parser.complete());
  ASSERT_EQ(rig.sink.pages.size(), 6U);
  EXPECT_EQ(rig.sink.pages.at(0), ByteBuffer(kPageSizeBytes, std::byte{1}));
  EXPECT_EQ(rig.sink.pages.at(1), ByteBuffer(kPageSizeBytes, std::byte{5}));
  EXPECT_TRUE(rig.sink.pages.at(2).empty());
  EXPECT_EQ(rig.sink.pages.at(3), ByteBuffer(kPageSizeBytes, std::byte{3}));
  EXPECT_TRUE(rig.sink.pages.at(4).empty());
  EXPECT_EQ(rig.sink.pages.at(5), ByteBuffer(kPageSizeBytes, std::byte{4}));
  EXPECT_EQ(rig.parser.pages(), 5U);
  EXPECT_EQ(rig.parser.zero_pages(), 2U);
  EXPECT_EQ(rig.events.pings, std::vector<std::uint32_t>{1});
  EXPECT_EQ(rig.events.ram_ends, 1);
  EXPECT_EQ(rig.events.pages_at_setup, 6U);
  EXPECT_EQ(rig.parser.state().vmdesc_json, SourceStream::kVmdesc);
}

std::string error_of(const SourceStream& stream) {
  Rig rig;
  auto result = rig.feed(stream.bytes());
  return result ? "no error" : result.error().message;
}

TEST(QemuStreamParserTest, TakesAWholeStreamApart) {
  Rig rig;
  auto result = rig.feed(good_stream().bytes());
  ASSERT_TRUE(result.has_value()) << result.error().message;
  expect_good(rig);
}

TEST(QemuStreamParserTest, AnySplitInTwoGivesTheSame) {
  const ByteBuffer bytes = good_stream().take();
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    Rig rig;
    ASSERT_TRUE(rig.feed(std::span(bytes).first(cut)).has_value()) << cut;
    ASSERT_TRUE(rig.feed(std::span(bytes).subspan(cut)).has_value()) << cut;
    ASSERT_NO_FATAL_FAILURE(expect_good(rig)) << cut;
    if (HasFailure()) FAIL() << "split at " << cut;
  }
}

TEST(QemuStreamParserTest, ByteByByteGivesTheSame) {
  Rig rig;
  const ByteBuffer bytes = good_stream().take();
  for (const std::byte& byte : bytes) ASSERT_TRUE(rig.feed({&byte, 1}).has_value());
  expect_good(rig);
}

TEST(QemuStreamParserTest, NeverNeedsMoreThanItsWindow) {
  Rig rig;
  for (const ByteBuffer bytes = good_stream().take(); const std::byte& byte : bytes) {
    ASSERT_TRUE(rig.feed({&byte, 1}).has_value());
    ASSERT_LT(rig.window.size(), kParserWindowBytes);
  }
}

TEST(QemuStreamParserTest, KeepsConfigurationVerbatim) {
  Rig rig;
  SourceStream s;
  s.header();
  const std::size_t from = s.bytes().size();
  s.configuration("pc-i440fx-7.2").subsection("configuration/uuid", 16);
  const ByteBuffer expected(s.bytes().begin() + static_cast<std::ptrdiff_t>(from), s.bytes().end());
  s.start().block_list(kBlocks).eos().footer().part();
  ASSERT_TRUE(rig.feed(s.bytes()).has_value());
  EXPECT_EQ(rig.parser.state().configuration, expected);
  EXPECT_EQ(rig.events.machine_at_setup, "pc-i440fx-7.2");
}

TEST(QemuStreamParserTest, KeepsDeviceSectionsVerbatim) {
  Rig rig;
  ASSERT_TRUE(rig.feed(good_stream().bytes()).has_value());
  SourceStream devices;
  devices.device("timer", 1, "tick")
      .device("globalstate", 9, SourceStream::global_state("running"));
  EXPECT_EQ(rig.parser.state().device_sections, devices.bytes());
}

TEST(QemuStreamParserTest, SetupIsCompleteOnlyAtTheFirstPart) {
  Rig rig;
  SourceStream s;
  ASSERT_TRUE(rig.feed(s.setup(kBlocks).bytes()).has_value());
  EXPECT_EQ(rig.events.pages_at_setup, 0U);
  SourceStream part;
  ASSERT_TRUE(rig.feed(part.part().bytes()).has_value());
  EXPECT_EQ(rig.events.pages_at_setup, 6U);
}

TEST(QemuStreamParserTest, SinkErrorsComeBack) {
  Rig rig;
  rig.sink.refuse_pages(Error{Errc::no_space, 0, "store is full"});
  auto result = rig.feed(good_stream().bytes());
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::no_space);
}

TEST(QemuStreamParserTest, ForeignSectionAfterRamIsRefusedBeforeAnyPage) {
  Rig rig;
  SourceStream s;
  s.setup(kBlocks).start("dirty-bitmap", 1, 7);
  auto result = rig.feed(s.bytes());
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::unsupported);
  EXPECT_EQ(result.error().message,
            "migration stream: section \"dirty-bitmap\" (capability dirty-bitmaps) cannot be "
            "moved; only RAM can");
  EXPECT_EQ(rig.events.pages_at_setup, 0U);
}

TEST(QemuStreamParserTest, ForeignSectionBeforeRamIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().start("block", 1, 1)),
            "migration stream: section \"block\" (block migration) cannot be moved; only RAM can");
}

TEST(QemuStreamParserTest, VfioIsRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).start("0000:00:02.0/vfio", 1, 7)),
            "migration stream: section \"0000:00:02.0/vfio\" (a vfio device) cannot be moved; only "
            "RAM can");
}

TEST(QemuStreamParserTest, EarlyDeviceStateIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().device("virtio-mem-early", 3, "")),
            "migration stream: device \"virtio-mem-early\" sends its state before guest memory "
            "(virtio-mem does)");
}

TEST(QemuStreamParserTest, OtherRamVersionIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().start("ram", 5)),
            "migration stream: RAM section instance 0 version 5, must be 0 and 4");
}

struct RefusedRecord {
  std::uint64_t flag;
  const char* name;
};
class QemuStreamParserRefusesTest : public testing::TestWithParam<RefusedRecord> {};

TEST_P(QemuStreamParserRefusesTest, RamRecord) {
  SourceStream s;
  s.setup(kBlocks).part().word(GetParam().flag);
  EXPECT_EQ(error_of(s),
            std::string("migration stream: RAM record ") + GetParam().name + " is refused");
}

INSTANTIATE_TEST_SUITE_P(
    All, QemuStreamParserRefusesTest,
    testing::Values(RefusedRecord{kRamFlagFull, "FULL (obsolete)"},
                    RefusedRecord{kRamFlagXbzrle, "XBZRLE (capability xbzrle)"},
                    RefusedRecord{kRamFlagXbzrle | kRamFlagContinue, "XBZRLE (capability xbzrle)"},
                    RefusedRecord{kRamFlagHook, "HOOK (RDMA)"},
                    RefusedRecord{kRamFlagCompressPage, "COMPRESS_PAGE (capability compress)"},
                    RefusedRecord{kRamFlagMultifdFlush, "MULTIFD_FLUSH (capability multifd)"}));

TEST(QemuStreamParserTest, PostcopyAdviseIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().command(Command::postcopy_advise,
                                                                     ByteBuffer(16))),
            "migration stream: command 3 POSTCOPY_ADVISE (capability postcopy-ram or "
            "dirty-bitmaps) is refused");
}

TEST(QemuStreamParserTest, ColoIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().command(Command::enable_colo)),
            "migration stream: command 8 ENABLE_COLO (capability x-colo) is refused");
}

TEST(QemuStreamParserTest, PingOfWrongLengthIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().command(Command::ping)),
            "migration stream: command 2 has 0 bytes, must have 4");
}

TEST(QemuStreamParserTest, IgnoreSharedIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().subsection(
                "configuration/capabilities", 20)),
            "migration stream: capability x-ignore-shared or mapped-ram is on at the source");
}

TEST(QemuStreamParserTest, UnknownConfigurationIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().subsection("configuration/new", 4)),
            "migration stream: unknown configuration \"configuration/new\"");
}

TEST(QemuStreamParserTest, MissingConfigurationIsRefused) {
  EXPECT_NE(error_of(SourceStream().header().start()).find("no configuration section"),
            std::string::npos);
}

TEST(QemuStreamParserTest, OtherMagicIsRefused) {
  EXPECT_EQ(error_of(SourceStream().text("QEVMQEVM").eof().word(3)),
            "migration stream: version 1363498573, must be 3");
  EXPECT_EQ(error_of(SourceStream().text("LIBVIRT!")),
            "migration stream: begins with 0x4c494256, must be 0x5145564d");
}

TEST(QemuStreamParserTest, OffsetBeyondTheBlockIsRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).part().page("rom", 0x2000, 1)),
            "migration stream: page at 0x2000 of RAM block \"rom\", which has 0x2000 bytes");
  EXPECT_EQ(
      error_of(
          SourceStream().setup(kBlocks).part().page("rom", 0, 1).page("", 0xfffffffffffff000, 1)),
      "migration stream: page at 0xfffffffffffff000 of RAM block \"rom\", which has 0x2000 bytes");
}

TEST(QemuStreamParserTest, UnknownBlockIsRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).part().page("vga", 0, 1)),
            "migration stream: page of unknown RAM block \"vga\"");
}

TEST(QemuStreamParserTest, ContinuationWithoutABlockIsRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).part().page("", 0, 1)),
            "migration stream: a page continues a block, but none was named");
}

TEST(QemuStreamParserTest, IllegalFlagsAreRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).part().word(kRamFlagPage | kRamFlagZero)),
            "migration stream: RAM record with flags 0xa");
}

TEST(QemuStreamParserTest, NonZeroFillIsRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).part().zero("rom", 0, 0xff)),
            "migration stream: page filled with 0xff, only zero is supported");
}

TEST(QemuStreamParserTest, PageInTheSetupIsRefused) {
  EXPECT_EQ(error_of(SourceStream().header().configuration().start().block_list(kBlocks).page(
                "rom", 0, 1)),
            "migration stream: a page in the setup");
}

TEST(QemuStreamParserTest, SecondBlockListIsRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).part().block_list(kBlocks)),
            "migration stream: a RAM block list outside the setup, or a second one");
}

TEST(QemuStreamParserTest, BlockLongerThanTheTotalIsRefused) {
  SourceStream s;
  s.header().configuration().start().word(0x1000 | kRamFlagMemSize).text("\x01r").word(0x2000);
  EXPECT_EQ(error_of(s), "migration stream: RAM block \"r\" of 8192 bytes, of which 4096 are left");
}

TEST(QemuStreamParserTest, GuestMemoryBeyondTheLimitIsRefused) {
  SourceStream s;
  s.header().configuration().start().word((kMemoryBytesMax + 0x1000) | kRamFlagMemSize);
  EXPECT_EQ(error_of(s),
            "migration stream: guest memory of 70368744181760 bytes, must be 1 to 70368744177664");
}

TEST(QemuStreamParserTest, MissingFooterIsRefused) {
  EXPECT_NE(
      error_of(SourceStream().header().configuration().start().block_list(kBlocks).eos().part())
          .find("without footer"),
      std::string::npos);
}

TEST(QemuStreamParserTest, FooterOfAnotherSectionIsRefused) {
  EXPECT_EQ(
      error_of(SourceStream().header().configuration().start().block_list(kBlocks).eos().footer(3)),
      "migration stream: footer of section 3 ends section 2");
}

TEST(QemuStreamParserTest, EndOfFileBeforeRamEndedIsRefused) {
  EXPECT_EQ(error_of(SourceStream().setup(kBlocks).eof()),
            "migration stream: record type 0x00 before the end of RAM");
}

TEST(QemuStreamParserTest, BytesBehindTheEndAreRefused) {
  Rig rig;
  ASSERT_TRUE(rig.feed(good_stream().bytes()).has_value());
  EXPECT_FALSE(rig.feed(ByteBuffer(1)).has_value());
}

}  // namespace
}  // namespace pageferry::qemu_stream
