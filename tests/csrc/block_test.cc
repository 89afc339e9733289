// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

namespace dwdp {
namespace {

UniqueFd Reopen(const UniqueFd& fd, int flags) {
  return UniqueFd(open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), flags));
}

// While it lives, the process can open no descriptors. It must not live longer than one call: the
// sanitizer needs descriptors to look at an exception.
class NoDescriptors {
 public:
  NoDescriptors() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &limit_), 0);
    const rlimit none{0, limit_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  ~NoDescriptors() { EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &limit_), 0); }

 private:
  rlimit limit_{};
};

TEST(Block, SealedFileCarriesEverySeal) {
  const UniqueFd fd = ExportFd(*SealedBlock(Driver(), kPage, 0, 1));
  const int expected = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
  EXPECT_EQ(fcntl(fd.get(), F_GET_SEALS) & expected, expected);
}

TEST(Block, SealedFileRefusesWritesThroughEveryAlias) {
  auto block = SealedBlock(Driver(), 4 * kPage, 0, 1);
  EXPECT_TRUE(block->is_write_sealed());
  const UniqueFd writable = Reopen(ExportFd(*block), O_RDWR);
  ASSERT_GE(writable.get(), 0);
  EXPECT_EQ(pwrite(writable.get(), "x", 1, 0), -1);
  EXPECT_EQ(ftruncate(writable.get(), 0), -1);
  EXPECT_EQ(fallocate(writable.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage), -1);
  EXPECT_EQ(mmap(nullptr, kPage, PROT_WRITE, MAP_SHARED, writable.get(), 0), MAP_FAILED);
}

TEST(Block, ExportsAReadOnlyDescriptorThatExecCloses) {
  const UniqueFd fd = ExportFd(*SealedBlock(Driver(), kPage, 0, 1));
  EXPECT_EQ(fcntl(fd.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST(Block, IsNotSealedBeforeItSaysSo) {
  auto block = FilledBlock(Driver(), kPage, 0, 1);
  EXPECT_FALSE(block->is_sealed());
  EXPECT_FALSE(block->is_write_sealed());
  ExpectRefusal([&] { ExportFd(*block); }, {"expected a sealed block"});
}

TEST(Block, FillingOrSealingASealedOneIsRefused) {
  auto block = SealedBlock(Driver(), kPage, 0, 1);
  ExpectRefusal([&] { block->Fill(0, "x", 1); }, {"got a sealed one"});
  ExpectRefusal([&] { block->Seal(); }, {"got a sealed one"});
}

TEST(Block, FillingOutsideIsRefused) {
  auto block = Block::Create(Driver(), kPage, 0);
  ExpectRefusal([&] { block->Fill(kPage, "x", 1); },
                {"1 bytes at offset " + std::to_string(kPage)});
  ExpectRefusal([&] { block->Fill(static_cast<std::size_t>(-1), "xx", 2); }, {"inside"});
  ExpectRefusal([&] { block->Fill(0, "x", 0); }, {"at least one byte"});
}

TEST(Block, SizesThatAreNotWholePagesAreRefused) {
  ExpectRefusal([] { Block::Create(Driver(), 0, 0); }, {"at least one page"});
  ExpectRefusal([] { Block::Create(Driver(), kPage + 1, 0); }, {std::to_string(kPage + 1)});
  ExpectRefusal([] { Block::Create(Driver(), kPage, 1); }, {"at offset 1"});
}

TEST(Block, SizesThatWrapAroundAreRefused) {
  const std::size_t most = 0 - kPage;
  ExpectRefusal([&] { Block::Create(Driver(), most, kPage); }, {"fits into memory"});
  ExpectRefusal([&] { Block::Create(Driver(), kPage, most); }, {"fits into memory"});
}

TEST(Block, LeadingHoleTakesNoMemory) {
  const std::size_t offset = kHugePageBytes - kPage;
  auto block = SealedBlock(Driver({.huge_pages = false}), kHugePageBytes, offset, 1);
  struct stat status{};
  const UniqueFd fd = ExportFd(*block);
  ASSERT_EQ(fstat(fd.get(), &status), 0);
  EXPECT_EQ(static_cast<std::size_t>(status.st_size), offset + kHugePageBytes);
  EXPECT_EQ(static_cast<std::size_t>(status.st_blocks) * 512, kHugePageBytes);
}

// vLLM forks by default; a child that lives on must not keep a writable mapping.
TEST(Block, SealsWhileAForkedChildIsAlive) {
  auto block = FilledBlock(Driver(), kPage, 0, 1);
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  block->Seal();
  EXPECT_TRUE(block->is_write_sealed());
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST(Block, StaysOpenWhenSealingRunsOutOfDescriptors) {
  auto block = FilledBlock(Driver(), kPage, 0, 1);
  ExpectRefusal(
      [&] {
        const NoDescriptors none;
        block->Seal();
      },
      {"ulimit -n"});
  ExpectRefusal(
      [&] {
        const NoDescriptors none;
        Block::Create(Driver(), kPage, 0);
      },
      {"memfd_create", "ulimit -n"});
  block->Fill(0, "x", 1);
  block->Seal();
  EXPECT_TRUE(block->is_write_sealed());
}

TEST(Block, LeavesNoDescriptorAndNoMapping) {
  const auto descriptors = NumDescriptors();
  {
    auto open = FilledBlock(Driver(), 2 * kHugePageBytes, kPage, 1);
  }
  {
    auto sealed = SealedBlock(Driver(), 2 * kHugePageBytes, kPage, 1);
  }
  EXPECT_EQ(NumDescriptors(), descriptors);
  EXPECT_EQ(NumExpertMaps(), 0);
}

TEST(Driver, NamesANumaNodeThatIsNotThereOnce) {
  auto driver = Driver({.numa_node = 1000});
  FilledBlock(driver, kPage, 0, 1)->Seal();
  FilledBlock(driver, kPage, 0, 1)->Seal();
  ASSERT_EQ(driver->warnings().size(), 1U);
  EXPECT_NE(driver->warnings()[0].find("NUMA node 1000"), std::string::npos);
}

}  // namespace
}  // namespace dwdp
