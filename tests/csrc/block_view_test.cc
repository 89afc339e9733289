// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "error.h"
#include "host_driver.h"
#include "view.h"

namespace dwdp {
namespace {

constexpr std::size_t kPage = 4096;

std::shared_ptr<MemoryDriver> Driver() {
  return std::make_shared<HostDriver>(HostOptions{.name = "dwdp-test"});
}

std::vector<std::byte> Pattern(std::size_t num_bytes, int seed) {
  std::vector<std::byte> bytes(num_bytes);
  for (std::size_t i = 0; i < num_bytes; ++i) bytes[i] = std::byte((i * 31 + seed) % 251);
  return bytes;
}

std::shared_ptr<Block> SealedBlock(const std::shared_ptr<MemoryDriver>& driver,
                                   std::size_t num_bytes, std::size_t view_offset, int seed) {
  auto block = Block::Create(driver, num_bytes, view_offset);
  const auto bytes = Pattern(num_bytes, seed);
  block->Fill(0, bytes.data(), num_bytes);
  block->Seal();
  return block;
}

std::ptrdiff_t NumDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return std::distance(begin(all), end(all));
}

int NumExpertMaps() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("dwdp-test") != line.npos;
  return count;
}

TEST(Block, SealedFileRefusesEveryWrite) {
  auto block = SealedBlock(Driver(), 4 * kPage, 0, 1);
  EXPECT_TRUE(block->is_write_sealed());
  const UniqueFd fd = block->Export();
  EXPECT_EQ(fcntl(fd.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
  const UniqueFd writable(open(path.c_str(), O_RDWR));
  ASSERT_GE(writable.get(), 0);
  EXPECT_EQ(pwrite(writable.get(), "x", 1, 0), -1);
  EXPECT_EQ(ftruncate(writable.get(), 0), -1);
  EXPECT_EQ(mmap(nullptr, kPage, PROT_WRITE, MAP_SHARED, writable.get(), 0), MAP_FAILED);
}

TEST(Block, FillAfterSealIsRefused) {
  auto block = SealedBlock(Driver(), kPage, 0, 1);
  EXPECT_THROW(block->Fill(0, "x", 1), DriverError);
  EXPECT_THROW(block->Seal(), DriverError);
}

TEST(Block, FillOutsideIsRefused) {
  auto block = Block::Create(Driver(), kPage, 0);
  EXPECT_THROW(block->Fill(kPage, "x", 1), DriverError);
  EXPECT_THROW(block->Fill(static_cast<std::size_t>(-1), "xx", 2), DriverError);
}

TEST(Block, PartialPagesAreRefused) {
  EXPECT_THROW(Block::Create(Driver(), 0, 0), DriverError);
  EXPECT_THROW(Block::Create(Driver(), kPage + 1, 0), DriverError);
  EXPECT_THROW(Block::Create(Driver(), kPage, 1), DriverError);
}

TEST(Block, OpenBlockIsNotExported) {
  EXPECT_THROW(Block::Create(Driver(), kPage, 0)->Export(), DriverError);
}

TEST(Import, RefusesAnotherSizeAndClosesTheDescriptor) {
  auto block = SealedBlock(Driver(), 2 * kPage, 0, 1);
  const auto before = NumDescriptors();
  EXPECT_THROW(Block::Import(Driver(), block->Export(), kPage, 0), DriverError);
  EXPECT_EQ(NumDescriptors(), before);
}

TEST(Import, RefusesAnUnsealedFile) {
  UniqueFd fd(memfd_create("dwdp-test", MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(fd.get(), kPage), 0);
  EXPECT_THROW(Block::Import(Driver(), std::move(fd), kPage, 0), DriverError);
}

TEST(Import, RefusesAFileSealedOnlyAgainstResizing) {
  UniqueFd fd(memfd_create("dwdp-test", MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(fd.get(), kPage), 0);
  ASSERT_EQ(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  EXPECT_THROW(Block::Import(Driver(), std::move(fd), kPage, 0), DriverError);
}

TEST(Import, RefusesAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const UniqueFd other(ends[1]);
  EXPECT_THROW(Block::Import(Driver(), UniqueFd(ends[0]), kPage, 0), DriverError);
}

TEST(View, AddressAndFileOffsetAreCongruentForHugePages) {
  auto driver = Driver();
  const std::size_t offset = 5 * kPage;
  auto block = SealedBlock(driver, 2 * kHugePageBytes, offset, 1);
  View view(driver, offset + block->num_bytes());
  const auto& file = dynamic_cast<const HostAllocation&>(block->allocation());
  const auto address = reinterpret_cast<std::uintptr_t>(view.address()) + offset;
  EXPECT_EQ(address % kHugePageBytes, file.file_offset() % kHugePageBytes);
}

TEST(View, HoleIsRefusedWithItsOffset) {
  auto driver = Driver();
  View view(driver, 3 * kPage);
  view.MapPrivate(0, kPage);
  view.MapPrivate(2 * kPage, kPage);
  try {
    view.Finish();
    FAIL() << "a view with a hole was finished";
  } catch (const DriverError& error) {
    EXPECT_NE(std::string(error.what()).find("offset 4096"), std::string::npos) << error.what();
  }
}

TEST(View, OverlapIsRefused) {
  auto driver = Driver();
  View view(driver, 4 * kPage);
  view.MapPrivate(kPage, 2 * kPage);
  EXPECT_THROW(view.MapPrivate(0, 2 * kPage), DriverError);
  EXPECT_THROW(view.MapPrivate(2 * kPage, kPage), DriverError);
  EXPECT_THROW(view.MapPrivate(3 * kPage, 2 * kPage), DriverError);
  view.MapPrivate(3 * kPage, kPage);
}

TEST(View, BlockGoesOnlyWhereItWasMadeFor) {
  auto driver = Driver();
  View view(driver, 4 * kPage);
  auto block = SealedBlock(driver, kPage, kPage, 1);
  EXPECT_THROW(view.MapBlock(0, *block), DriverError);
  EXPECT_THROW(view.MapBlock(kPage, *Block::Create(driver, kPage, kPage)), DriverError);
}

TEST(View, OutlivesBlockAndDriverAndLeavesNothing) {
  const auto descriptors = NumDescriptors();
  {
    std::unique_ptr<View> view;
    {
      auto driver = Driver();
      view = std::make_unique<View>(driver, 3 * kPage);
      view->MapBlock(kPage, *SealedBlock(driver, 2 * kPage, kPage, 7));
      view->MapPrivate(0, kPage);
      view->FillPrivate(16, "fringe", 6);
      view->Finish();
    }
    EXPECT_EQ(NumDescriptors(), descriptors);
    const auto expected = Pattern(2 * kPage, 7);
    EXPECT_EQ(memcmp(view->address() + kPage, expected.data(), expected.size()), 0);
    EXPECT_EQ(memcmp(view->address() + 16, "fringe", 6), 0);
    EXPECT_EQ(view->num_maps(), 2U);
    EXPECT_THROW(view->FillPrivate(0, "x", 1), DriverError);
  }
  EXPECT_EQ(NumExpertMaps(), 0);
}

TEST(View, FillingABlockIsRefused) {
  auto driver = Driver();
  View view(driver, kPage);
  view.MapBlock(0, *SealedBlock(driver, kPage, 0, 1));
  EXPECT_THROW(view.FillPrivate(0, "x", 1), DriverError);
}

TEST(Driver, DescriptorLimitIsNamed) {
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const UniqueFd lowest(dup(0));
  const rlimit low{static_cast<rlim_t>(lowest.get() + 1), limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  std::string message;
  try {
    Block::Create(Driver(), kPage, 0);
  } catch (const DriverError& error) {
    message = error.what();
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_NE(message.find("ulimit -n"), std::string::npos) << message;
}

// The owner shares a block over a socket and is killed; the peer still reads what it holds.
TEST(Peer, ReadsAfterItsOwnerWasKilled) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
  const pid_t owner = fork();
  if (owner == 0) {
    auto block = SealedBlock(Driver(), 4 * kPage, 0, 3);
    const UniqueFd fd = block->Export();
    char control[CMSG_SPACE(sizeof(int))] = {};
    char byte = 0;
    iovec io{&byte, 1};
    msghdr message{};
    message.msg_iov = &io;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    *header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    const int raw = fd.get();
    memcpy(CMSG_DATA(header), &raw, sizeof(raw));
    sendmsg(ends[1], &message, 0);
    pause();
  }
  char control[CMSG_SPACE(sizeof(int))] = {};
  char byte = 0;
  iovec io{&byte, 1};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ASSERT_EQ(recvmsg(ends[0], &message, 0), 1);
  int fd = -1;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);

  auto driver = Driver();
  View view(driver, 4 * kPage);
  view.MapBlock(0, *Block::Import(driver, UniqueFd(fd), 4 * kPage, 0));
  view.Finish();
  const auto expected = Pattern(4 * kPage, 3);
  EXPECT_EQ(memcmp(view.address(), expected.data(), expected.size()), 0);
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace dwdp
