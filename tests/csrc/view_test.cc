// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory/view.h"

#include <signal.h>

#include "support.h"

namespace dwdp {
namespace {

TEST(View, AddressAndFileOffsetAreCongruentForHugePages) {
  auto driver = Driver();
  for (const std::size_t offset : {std::size_t{0}, 5 * kPage, kHugePageBytes + kPage}) {
    auto block = SealedBlock(driver, 2 * kHugePageBytes, offset, 1);
    View view(driver, offset + block->num_bytes());
    const auto& file = dynamic_cast<const HostAllocation&>(block->allocation());
    const auto address = reinterpret_cast<std::uintptr_t>(view.address()) + offset;
    EXPECT_EQ(address % kHugePageBytes, file.file_offset() % kHugePageBytes);
  }
}

TEST(View, ShowsBlocksAndPrivatePagesSideBySide) {
  auto driver = Driver();
  const std::size_t start = 3 * kPage;
  View view(driver, start + kHugePageBytes + kPage);
  view.MapPrivate(0, kPage);
  view.MapBlock(kPage, *SealedBlock(driver, 2 * kPage, kPage, 5));
  view.MapBlock(start, *SealedBlock(driver, kHugePageBytes, start, 6));
  view.MapPrivate(start + kHugePageBytes, kPage);
  view.FillPrivate(16, "fringe", 6);
  view.Finish();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(view.address()) + 16, 6), "fringe");
  EXPECT_EQ(view.address()[15], std::byte{0});
  EXPECT_TRUE(Holds(view.address() + kPage, 2 * kPage, 5));
  EXPECT_TRUE(Holds(view.address() + start, kHugePageBytes, 6));
  EXPECT_EQ(view.num_maps(), 4U);
}

TEST(View, HoleIsRefusedWithItsOffset) {
  View view(Driver(), 3 * kPage);
  ExpectRefusal([&] { view.Finish(); }, {"offset 0 of"});
  view.MapPrivate(0, kPage);
  view.MapPrivate(2 * kPage, kPage);
  ExpectRefusal([&] { view.Finish(); }, {"offset " + std::to_string(kPage) + " of"});
  view.MapPrivate(kPage, kPage);
  view.Finish();
  EXPECT_TRUE(view.is_finished());
}

TEST(View, OverlapIsRefused) {
  View view(Driver(), 4 * kPage);
  view.MapPrivate(kPage, 2 * kPage);
  ExpectRefusal([&] { view.MapPrivate(0, 2 * kPage); }, {"overlap"});
  ExpectRefusal([&] { view.MapPrivate(2 * kPage, kPage); }, {"overlap"});
  ExpectRefusal([&] { view.MapPrivate(kPage, 2 * kPage); }, {"overlap"});
  ExpectRefusal([&] { view.MapPrivate(3 * kPage, 2 * kPage); }, {"inside"});
  view.MapPrivate(3 * kPage, kPage);
}

TEST(View, BlockGoesOnlyWhereItWasMadeForAndOnlySealed) {
  auto driver = Driver();
  View view(driver, 4 * kPage);
  auto block = SealedBlock(driver, kPage, kPage, 1);
  ExpectRefusal([&] { view.MapBlock(0, *block); }, {"offset " + std::to_string(kPage)});
  auto open = Block::Create(driver, kPage, kPage);
  ExpectRefusal([&] { view.MapBlock(kPage, *open); }, {"seal it before mapping"});
  view.MapBlock(kPage, *block);
  ExpectRefusal([&] { view.MapBlock(kPage, *block); }, {"overlap"});
}

TEST(View, SizesThatAreNotWholePagesAreRefused) {
  ExpectRefusal([] { View(Driver(), 0); }, {"at least one page"});
  ExpectRefusal([] { View(Driver(), kPage - 1); }, {"whole pages"});
  ExpectRefusal([] { View(Driver(), 0 - kPage); }, {"fits into memory"});
  View view(Driver(), kPage);
  ExpectRefusal([&] { view.MapPrivate(0, 0); }, {"at least one page"});
}

TEST(View, PrivateRangesThatTouchAreOneMapping) {
  View view(Driver(), 4 * kPage);
  view.MapPrivate(0, kPage);
  view.MapPrivate(3 * kPage, kPage);
  view.MapPrivate(2 * kPage, kPage);
  EXPECT_EQ(view.num_maps(), 2U);
  view.MapPrivate(kPage, kPage);
  EXPECT_EQ(view.num_maps(), 1U);
  view.FillPrivate(kPage - 8, Pattern(2 * kPage, 4).data(), 2 * kPage);
  view.Finish();
  EXPECT_TRUE(Holds(view.address() + kPage - 8, 2 * kPage, 4));
}

TEST(View, FillingWhatIsNotPrivateIsRefused) {
  auto driver = Driver();
  View view(driver, 3 * kPage);
  ExpectRefusal([&] { view.FillPrivate(0, "x", 1); }, {"expected private pages"});
  view.MapBlock(0, *SealedBlock(driver, kPage, 0, 1));
  view.MapPrivate(kPage, kPage);
  ExpectRefusal([&] { view.FillPrivate(0, "x", 1); }, {"expected private pages"});
  ExpectRefusal([&] { view.FillPrivate(2 * kPage - 1, "xx", 2); }, {"inside"});
}

TEST(View, FinishedOneNeverChanges) {
  auto driver = Driver();
  View view(driver, kPage);
  view.MapPrivate(0, kPage);
  view.Finish();
  ExpectRefusal([&] { view.FillPrivate(0, "x", 1); }, {"got a finished one"});
  ExpectRefusal([&] { view.MapPrivate(0, kPage); }, {"got a finished one"});
  ExpectRefusal([&] { view.Finish(); }, {"got a finished one"});
}

TEST(ViewDeathTest, WritingIntoAFinishedOneKills) {
  auto driver = Driver();
  View view(driver, 2 * kPage);
  view.MapPrivate(0, kPage);
  view.MapBlock(kPage, *SealedBlock(driver, kPage, kPage, 1));
  view.Finish();
  const auto write = [&](std::size_t at) {
    signal(SIGSEGV, SIG_DFL);  // the sanitizer's own handler exits instead
    *const_cast<volatile std::byte*>(view.address() + at) = std::byte{1};
  };
  EXPECT_EXIT(write(0), testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EXIT(write(kPage), testing::KilledBySignal(SIGSEGV), "");
}

TEST(View, OutlivesBlockAndDriverAndLeavesNothing) {
  const auto descriptors = NumDescriptors();
  {
    std::unique_ptr<View> view;
    {
      auto driver = Driver();
      view = std::make_unique<View>(driver, 2 * kPage);
      view->MapBlock(0, *SealedBlock(driver, 2 * kPage, 0, 7));
      view->Finish();
    }
    EXPECT_EQ(NumDescriptors(), descriptors);
    EXPECT_EQ(NumExpertMaps(), 1);
    EXPECT_TRUE(Holds(view->address(), 2 * kPage, 7));
  }
  EXPECT_EQ(NumExpertMaps(), 0);
}

class OtherMemory : public Allocation {
 public:
  std::size_t num_bytes() const override { return kPage; }
  std::byte* staging() const override { return nullptr; }
  void Seal() override {}
  bool is_write_sealed() const override { return true; }
  ShareableHandle Export(HandleType) const override { return UniqueFd(); }
};

TEST(View, MemoryOfAnotherDriverIsRefused) {
  auto reservation = Driver()->Reserve(kPage);
  ExpectRefusal([&] { reservation->Map(0, OtherMemory()); }, {"got another driver's"});
}

}  // namespace
}  // namespace dwdp
