// --base on a real directory: which image is taken, what is linked, what is refused, and that dropping one attempt takes nothing from another.
#include "tools/pageferry/base_image.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fakes/page_file_fixture.h"
#include "fakes/scratch_directory.h"
#include "tools/pageferry/attempt_files.h"
#include "tools/pageferry/hand_off.h"

namespace pageferry {
namespace {

using namespace testing_support;

class BaseImageTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 300;

  void SetUp() override {
    auto opened = HandOff::open(scratch_.path(), "vm", VmDirectory::IfMissing::create, stop_);
    ASSERT_TRUE(opened) << opened.error().message;
    hand_off_ = std::move(*opened);
    first_ = send(Epoch{0}, std::nullopt, 0, 200, 1);
  }

  struct Sent {
    std::string attempt;
    std::string id;
    RandomId commit;
  };
  // What a source does: attempt, base, pages, commit, release.
  Sent send(Epoch epoch, const std::optional<Sent>& base, std::uint64_t from, std::uint64_t end,
            std::uint64_t age) {
    Sent sent;
    auto attempt = hand_off_->directory().create_attempt(epoch);
    EXPECT_TRUE(attempt);
    sent.attempt = attempt->name;
    sent.id = parse_attempt_name(attempt->name)->id.hex();
    const auto ids = PageFileIds::random();
    EXPECT_TRUE(ids);
    std::memcpy(sent.commit.bytes.data(), ids->commit_id.data(), ids->commit_id.size());
    auto file = create_attempt_pages(*attempt, {}, real_clock());
    EXPECT_TRUE(file) << file.error().message;
    auto writer = PageFileWriter::make(std::move(*file), *ids, small_options(), real_clock());
    EXPECT_TRUE((*writer)->begin(layout_of({{"ram", kPages}})));
    if (base) {
      const auto image = find(base->id);
      EXPECT_TRUE(image) << image.error().message;
      EXPECT_TRUE(link_bases(hand_off_->directory(), *image, *attempt));
      EXPECT_TRUE((*writer)->use_base(image->image, image->plan));
    }
    (*writer)->begin_pass(1);
    for (std::uint64_t page = from; page < end; ++page) EXPECT_TRUE(put(**writer, page, age));
    EXPECT_TRUE((*writer)->finish_and_commit());
    release(epoch, {sent.attempt, sent.commit});
    return sent;
  }
  void release(Epoch epoch, const ImageRef& image) {
    ASSERT_EQ(*hand_off_->claim(epoch, *this_process()), Claim::won);
    ASSERT_TRUE(hand_off_->run(epoch, *this_process()));
    GuestState state;
    state.image = image;
    ASSERT_TRUE(hand_off_->release(epoch, state));
  }
  Result<BaseImage> find(const std::string& since,
                         BaseChoice choice = {BaseChoice::Kind::automatic, {}}) {
    const auto snapshot = hand_off_->read();
    EXPECT_TRUE(snapshot);
    return find_base_image(hand_off_->directory(), *snapshot, choice, since, {});
  }
  Attempt open(const std::string& name) {
    auto attempt = hand_off_->directory().open_attempt(name);
    EXPECT_TRUE(attempt) << attempt.error().message;
    return attempt ? std::move(*attempt) : Attempt{};
  }
  std::string path(const std::string& attempt, const std::string& file) const {
    return scratch_.path() + "/vm/" + attempt + "/" + file;
  }
  static ino_t inode(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
    return status.st_ino;
  }
  void expect_no_base(const Result<BaseImage>& found, Errc code, const std::string& words) {
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code, code) << found.error().message;
    EXPECT_NE(found.error().message.find(words), std::string::npos) << found.error().message;
    EXPECT_EQ(found.error().message.find('\n'), std::string::npos);
  }
  void expect_whole(const std::string& name, std::uint64_t changed, std::uint64_t age) {
    const Attempt attempt = open(name);
    auto reader = open_attempt_pages(attempt, {}, real_clock(), {});
    ASSERT_TRUE(reader) << reader.error().message;
    for (std::uint64_t page = 0; page < 200; ++page) {
      ASSERT_TRUE(holds(**reader, page, page < changed ? age : 1)) << page;
    }
  }

  ScratchDirectory scratch_;
  CancelSignal stop_;
  std::unique_ptr<HandOff> hand_off_;
  Sent first_;
};

TEST_F(BaseImageTest, TheImageThatTheGuestWasRestoredFromIsTheBase) {
  const auto found = find(first_.id);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->attempt, first_.attempt);
  EXPECT_EQ(found->plan.pages, 200U);
}

TEST_F(BaseImageTest, ANewAttemptHasTheBaseByAHardLink) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  const std::string link = "base." + first_.commit.hex();
  EXPECT_EQ(inode(path(second.attempt, link)), inode(path(first_.attempt, kPagesFileName)));
  expect_whole(second.attempt, 10, 2);
}

TEST_F(BaseImageTest, DroppingTheOldAttemptTakesNothingAway) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  ASSERT_TRUE(hand_off_->remove_older_attempts(Epoch{1}));
  EXPECT_FALSE(hand_off_->directory().open_attempt(first_.attempt));
  expect_whole(second.attempt, 10, 2);
}

TEST_F(BaseImageTest, DroppingTheNewAttemptTakesNothingAway) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  ASSERT_TRUE(hand_off_->directory().remove_attempt(second.attempt));
  expect_whole(first_.attempt, 0, 1);
}

TEST_F(BaseImageTest, ABaseWhoseOwnAttemptIsGoneIsLinkedFromTheOneThatNeedsIt) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  ASSERT_TRUE(hand_off_->remove_older_attempts(Epoch{1}));
  const Sent third = send(Epoch{2}, second, 0, 5, 3);
  ASSERT_TRUE(hand_off_->remove_older_attempts(Epoch{2}));
  const Attempt attempt = open(third.attempt);
  auto reader = open_attempt_pages(attempt, {}, real_clock(), {});
  ASSERT_TRUE(reader) << reader.error().message;
  EXPECT_TRUE(holds(**reader, 4, 3));
  EXPECT_TRUE(holds(**reader, 5, 2));
  EXPECT_TRUE(holds(**reader, 10, 1));
}

TEST_F(BaseImageTest, ReadBackProvesThePagesOfTheBaseToo) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  const Attempt attempt = open(second.attempt);
  EXPECT_TRUE(verify_attempt_pages(attempt, {}, real_clock(), {}));
  {
    auto reader = open_attempt_pages(attempt, {}, real_clock(), {});
    ASSERT_TRUE(reader);
    const std::uint64_t at = (*reader)->header().slots_offset + bytes_of_pages(50);
    const UniqueFd file(::open(path(first_.attempt, kPagesFileName).c_str(), O_WRONLY));
    ASSERT_EQ(::pwrite(file.get(), "x", 1, static_cast<off_t>(at)), 1);
  }
  const auto proved = verify_attempt_pages(attempt, {}, real_clock(), {});
  ASSERT_FALSE(proved);
  EXPECT_EQ(proved.error().code, Errc::corrupt);
  EXPECT_NE(proved.error().message.find("page 50 "), std::string::npos) << proved.error().message;
}

TEST_F(BaseImageTest, AVmmThatFollowedNothingHasNoBase) {
  expect_no_base(find(""), Errc::unsupported, "no image since which it followed every write");
}

TEST_F(BaseImageTest, AnAttemptThatWasNeverReleasedIsNoBase) {
  const auto attempt = hand_off_->directory().create_attempt(Epoch{1});
  ASSERT_TRUE(attempt);
  const std::string id = parse_attempt_name(attempt->name)->id.hex();
  expect_no_base(find(id), Errc::not_found, "no release of this VM names an attempt " + id);
}

TEST_F(BaseImageTest, AnotherImageThanWasChosenIsNoBase) {
  const std::string other = attempt_name(Epoch{0}, *RandomId::make());
  expect_no_base(find(first_.id, {BaseChoice::Kind::named, other}), Errc::unsupported,
                 "not since " + other);
  EXPECT_TRUE(find(first_.id, {BaseChoice::Kind::named, first_.attempt}));
}

TEST_F(BaseImageTest, ADroppedImageIsNoBase) {
  ASSERT_TRUE(hand_off_->directory().remove_attempt(first_.attempt));
  expect_no_base(find(first_.id), Errc::not_found, first_.attempt);
}

TEST_F(BaseImageTest, APageFileOfAnotherCommitIsNoBase) {
  const Sent other = send(Epoch{1}, std::nullopt, 0, 10, 2);
  ASSERT_EQ(::rename(path(other.attempt, kPagesFileName).c_str(),
                     path(first_.attempt, kPagesFileName).c_str()),
            0);
  expect_no_base(find(first_.id), Errc::corrupt,
                 "commit " + other.commit.hex() + ", the release names " + first_.commit.hex());
}

TEST_F(BaseImageTest, AnImageWithAMissingBaseIsNoBase) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  const std::string link = "base." + first_.commit.hex();
  ASSERT_EQ(::unlink(path(second.attempt, link).c_str()), 0);
  expect_no_base(find(second.id), Errc::not_found, link);
}

TEST_F(BaseImageTest, ADamagedMapIsNoBase) {
  {
    const Attempt attempt = open(first_.attempt);
    auto reader = open_attempt_pages(attempt, {}, real_clock(), {});
    ASSERT_TRUE(reader);
    const UniqueFd file(::open(path(first_.attempt, kPagesFileName).c_str(), O_WRONLY));
    const auto at = static_cast<off_t>((*reader)->header().map_offset + 99);
    ASSERT_EQ(::pwrite(file.get(), "x", 1, at), 1);
  }
  expect_no_base(find(first_.id), Errc::corrupt, "map block 0");
}

TEST_F(BaseImageTest, ABaseThatIsDroppedBeforeItIsLinkedLeavesNothingBehind) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  const auto base = find(second.id);
  ASSERT_TRUE(base) << base.error().message;
  ASSERT_EQ(base->plan.bases.size(), 2U);
  const std::string link = "base." + first_.commit.hex();
  ASSERT_EQ(::unlink(path(second.attempt, link).c_str()), 0);
  const auto attempt = hand_off_->directory().create_attempt(Epoch{2});
  ASSERT_TRUE(attempt);
  const auto linked = link_bases(hand_off_->directory(), *base, *attempt);
  ASSERT_FALSE(linked);
  EXPECT_EQ(linked.error().code, Errc::not_found);
  EXPECT_EQ(::rmdir(path(attempt->name, "").c_str()), 0) << "it is empty";
}

TEST_F(BaseImageTest, ADestinationMissesABaseBeforeItLoadsAnything) {
  const Sent second = send(Epoch{1}, first_, 0, 10, 2);
  const auto base = find(second.id);
  ASSERT_TRUE(base);
  const auto attempt = hand_off_->directory().create_attempt(Epoch{2});
  ASSERT_TRUE(attempt);
  ASSERT_TRUE(link_bases(hand_off_->directory(), *base, *attempt));
  VmManifest manifest;
  manifest.bases = manifest_bases(base->plan);
  ASSERT_EQ(manifest.bases.size(), 2U);
  EXPECT_TRUE(check_bases_are_there(*attempt, manifest));
  ASSERT_EQ(::unlink(path(attempt->name, manifest.bases[1].file).c_str()), 0);
  const auto checked = check_bases_are_there(*attempt, manifest);
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code, Errc::not_found);
  EXPECT_NE(checked.error().message.find(manifest.bases[1].file), std::string::npos);
  manifest.bases.resize(1);
  manifest.bases[0].file_bytes += std::uint64_t{1} << 30;
  EXPECT_EQ(check_bases_are_there(*attempt, manifest).error().code, Errc::corrupt);
}

}  // namespace
}  // namespace pageferry
