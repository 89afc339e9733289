// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support.h"

namespace dwdp {
namespace {

UniqueFd FileWithSeals(std::size_t num_bytes, int seals) {
  UniqueFd fd(memfd_create("dwdp-test", MFD_ALLOW_SEALING | MFD_CLOEXEC));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(num_bytes)), 0);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

// Every refusal closes the descriptor that it was given.
void ExpectImportRefused(UniqueFd fd, std::size_t num_bytes, const std::string& part) {
  const auto before = NumDescriptors();
  ExpectRefusal([&] { Block::Import(Driver(), std::move(fd), num_bytes, 0); }, {part});
  EXPECT_EQ(NumDescriptors(), before - 1);
}

TEST(Import, RefusesAnotherSize) {
  auto block = SealedBlock(Driver(), 2 * kPage, 0, 1);
  ExpectImportRefused(ExportFd(*block), kPage, "of " + std::to_string(kPage) + " bytes");
  ExpectImportRefused(ExportFd(*block), kPage, "got " + std::to_string(2 * kPage));
  ExpectImportRefused(ExportFd(*block), kPage + 1, "whole pages");
  ExpectImportRefused(ExportFd(*block), 0, "at least one page");
}

TEST(Import, RefusesAnotherPlaceInTheView) {
  const std::size_t num_bytes = kHugePageBytes;
  auto block = SealedBlock(Driver(), num_bytes, kPage, 1);
  ExpectImportRefused(ExportFd(*block), num_bytes, std::to_string(num_bytes + kPage));
}

TEST(Import, RefusesMissingSeals) {
  ExpectImportRefused(FileWithSeals(kPage, 0), kPage, "got none");
  ExpectImportRefused(FileWithSeals(kPage, F_SEAL_SHRINK | F_SEAL_GROW), kPage, "got shrink grow;");
  ExpectImportRefused(FileWithSeals(kPage, F_SEAL_GROW | F_SEAL_WRITE), kPage, "got grow write;");
}

TEST(Import, TakesAnUnsealedContentOnlyWhenToldTo) {
  auto driver = Driver({.require_write_seal = false});
  auto block = Block::Import(driver, FileWithSeals(kPage, F_SEAL_SHRINK | F_SEAL_GROW), kPage, 0);
  EXPECT_TRUE(block->is_sealed());
  EXPECT_FALSE(block->is_write_sealed());
  ExpectRefusal([&] { Block::Import(driver, FileWithSeals(kPage, F_SEAL_GROW), kPage, 0); },
                {"got grow;"});
}

TEST(Import, RefusesWhatIsNotAMemoryFile) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd other(ends[1]);
  ExpectImportRefused(UniqueFd(ends[0]), kPage, "another kind of file");

  char path[] = "/tmp/dwdp-test-XXXXXX";
  UniqueFd file(mkstemp(path));
  ASSERT_EQ(unlink(path), 0);
  ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(kPage)), 0);
  ExpectImportRefused(std::move(file), kPage, "got none");
}

TEST(Import, RefusesADescriptorThatIsNotOpen) {
  ExpectRefusal([] { Block::Import(Driver(), UniqueFd(), kPage, 0); }, {"Bad file descriptor"});
}

TEST(Import, RefusesFabricHandlesOfHostMemory) {
  ExpectRefusal([] { Block::Import(Driver(), FabricHandle(), kPage, 0); }, {"got a fabric handle"});
  ExpectRefusal([] { SealedBlock(Driver(), kPage, 0, 1)->Export(HandleType::kFabric); },
                {"got a fabric handle"});
}

TEST(Import, KeepsNoWritableDescriptor) {
  auto fd = FileWithSeals(kPage, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
  ASSERT_EQ(fcntl(fd.get(), F_GETFL) & O_ACCMODE, O_RDWR);
  const auto before = NumDescriptors();
  auto block = Block::Import(Driver(), std::move(fd), kPage, 0);
  EXPECT_EQ(NumDescriptors(), before);
  EXPECT_EQ(fcntl(ExportFd(*block).get(), F_GETFL) & O_ACCMODE, O_RDONLY);
}

TEST(Import, CannotBeFilled) {
  auto block = Block::Import(Driver(), ExportFd(*SealedBlock(Driver(), kPage, 0, 1)), kPage, 0);
  ExpectRefusal([&] { block->Fill(0, "x", 1); }, {"got a sealed one"});
}

}  // namespace
}  // namespace dwdp
