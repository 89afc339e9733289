// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Rules of the fake CUDA driver about GPUs, their memory and their processes. Each is broken once.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_cuda_fixture.h"

namespace dwdp {
namespace {

using CanAccessPeer = PFN_cuDeviceCanAccessPeer_v4000;
using ElapsedTime = PFN_cuEventElapsedTime_v2000;
using MemGetInfo = PFN_cuMemGetInfo_v3020;
using PointerGetAttribute = PFN_cuPointerGetAttribute_v4000;

constexpr CUmemAccess_flags kRead = CU_MEM_ACCESS_FLAGS_PROT_READ;
constexpr CUmemAccess_flags kReadWrite = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;

class FakeMachine : public FakeCuda {
 protected:
  // Maps two adjacent pages that no GPU can access yet. The first is own memory, the second is
  // imported if `is_mixed`, else own memory, too.
  CUdeviceptr TwoPages(bool is_mixed) {
    CUdeviceptr start = 0;
    EXPECT_EQ(api.cuMemAddressReserve(&start, 2 * kFakePage, 0, 0, 0), CUDA_SUCCESS);
    for (int place = 0; place < 2; ++place) {
      CUmemGenericAllocationHandle handle = 0;
      EXPECT_EQ(Create(&handle), CUDA_SUCCESS);
      if (place == 1 && is_mixed) handle = Import(handle);
      EXPECT_EQ(api.cuMemMap(start + place * kFakePage, kFakePage, 0, handle, 0), CUDA_SUCCESS);
      EXPECT_EQ(api.cuMemRelease(handle), CUDA_SUCCESS);
    }
    return start;
  }

  void Free(CUdeviceptr start, std::size_t num_pages) {
    api.cuMemUnmap(start, num_pages * kFakePage);
    api.cuMemAddressFree(start, num_pages * kFakePage);
  }

  // Exports memory and imports it again, as if it were a peer's. Releases `handle`.
  CUmemGenericAllocationHandle Import(CUmemGenericAllocationHandle handle) {
    int fd = -1;
    CUmemGenericAllocationHandle imported = 0;
    EXPECT_EQ(
        api.cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
        CUDA_SUCCESS);
    void* descriptor = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd));
    EXPECT_EQ(api.cuMemImportFromShareableHandle(&imported, descriptor,
                                                 CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
              CUDA_SUCCESS);
    close(fd);
    api.cuMemRelease(handle);
    return imported;
  }

  template <typename Answer>
  CUresult Ask(CUpointer_attribute which, CUdeviceptr address, Answer* answer) {
    return Find<PointerGetAttribute>("cuPointerGetAttribute", 4000)(answer, which, address);
  }
};

TEST_F(FakeMachine, GpuGivesNoMoreMemoryThanItHas) {
  fake_cuda_set_capacity(0, kFakePage);
  CUmemGenericAllocationHandle first = 0, second = 0;
  EXPECT_EQ(Create(&first), CUDA_SUCCESS);
  EXPECT_EQ(Create(&second), CUDA_ERROR_OUT_OF_MEMORY);
  const CUmemAllocationProp of_gpu_1 = OfGpu(1);
  EXPECT_EQ(api.cuMemCreate(&second, kFakePage, &of_gpu_1, 0), CUDA_SUCCESS) << "GPU 1 has its own";
  api.cuMemRelease(second);
  api.cuMemRelease(first);
  EXPECT_EQ(Create(&first), CUDA_SUCCESS) << "what is released can be had again";
  api.cuMemRelease(first);
}

TEST_F(FakeMachine, MemoryCountsWhileAMappingHoldsIt) {
  fake_cuda_set_capacity(0, kFakePage);
  CUdeviceptr start = 0;
  CUmemGenericAllocationHandle handle = 0;
  EXPECT_EQ(Mapped(&start), CUDA_SUCCESS);
  EXPECT_EQ(Create(&handle), CUDA_ERROR_OUT_OF_MEMORY);
  Free(start, 1);
  EXPECT_EQ(Create(&handle), CUDA_SUCCESS);
  api.cuMemRelease(handle);
}

TEST_F(FakeMachine, MemoryInfoIsThatOfTheCurrentGpu) {
  const auto get_info = Find<MemGetInfo>("cuMemGetInfo", 3020);
  std::size_t free = 0, total = 0;
  fake_cuda_set_capacity(0, 8 * kFakePage);
  EXPECT_EQ(get_info(&free, &total), CUDA_SUCCESS);
  EXPECT_EQ(free, 8 * kFakePage);
  EXPECT_EQ(total, 10 * kFakePage) << "two pages are in use";
  CUcontext popped = nullptr;
  api.cuCtxPopCurrent(&popped);
  EXPECT_NE(get_info(&free, &total), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "cuMemGetInfo without a context\n");
  api.cuCtxPushCurrent(popped);
}

TEST_F(FakeMachine, RecommendedGranularityIsNoMinimum) {
  const CUmemAllocationProp wanted = OfGpu(0);
  std::size_t least = 0, recommended = 0;
  fake_cuda_set_recommended_granularity(4 * kFakePage);
  api.cuMemGetAllocationGranularity(&least, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  api.cuMemGetAllocationGranularity(&recommended, &wanted, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
  EXPECT_EQ(least, kFakePage);
  EXPECT_EQ(recommended, 4 * kFakePage);
  const auto neither = static_cast<CUmemAllocationGranularity_flags>(2);
  EXPECT_NE(api.cuMemGetAllocationGranularity(&least, &wanted, neither), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "cuMemGetAllocationGranularity of neither kind\n");
}

TEST_F(FakeMachine, VisibleGpusAreCounted) {
  const auto count = Find<PFN_cuDeviceGetCount_v2000>("cuDeviceGetCount", 2000);
  for (const auto& [visible, expected] : {std::pair{"1", 1}, {"1,0", 2}, {"", 0}}) {
    setenv("CUDA_VISIBLE_DEVICES", visible, 1);
    int found = -1;
    EXPECT_EQ(count(&found), CUDA_SUCCESS);
    EXPECT_EQ(found, expected) << visible;
  }
  unsetenv("CUDA_VISIBLE_DEVICES");
}

TEST_F(FakeMachine, GpuWithoutPeerAccessGetsNone) {
  const auto can_access = Find<CanAccessPeer>("cuDeviceCanAccessPeer", 4000);
  int can = -1;
  EXPECT_EQ(can_access(&can, 1, 0), CUDA_SUCCESS);
  EXPECT_EQ(can, 1);
  fake_cuda_deny_peer_access(1, 0);
  EXPECT_EQ(can_access(&can, 1, 0), CUDA_SUCCESS);
  EXPECT_EQ(can, 0);
  EXPECT_EQ(SetAccess(page, kFakePage, 1, kRead), CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
  EXPECT_EQ(can_access(&can, 0, 1), CUDA_SUCCESS);
  EXPECT_EQ(can, 1) << "the other way is another matter";
}

TEST_F(FakeMachine, NoGpuIsAPeerOfItsOwn) {
  int can = -1;
  EXPECT_EQ(Find<CanAccessPeer>("cuDeviceCanAccessPeer", 4000)(&can, 0, 0), CUDA_SUCCESS);
  EXPECT_EQ(can, 0);
  EXPECT_EQ(SetAccess(page, kFakePage, 0, kRead), CUDA_SUCCESS);
}

TEST_F(FakeMachine, MixedAccessCanBeRefused) {
  const CUdeviceptr alike = TwoPages(false), mixed = TwoPages(true);
  EXPECT_EQ(SetAccess(mixed, 2 * kFakePage, 0, kRead), CUDA_SUCCESS);
  fake_cuda_refuse_mixed_access();
  EXPECT_EQ(SetAccess(mixed, 2 * kFakePage, 0, kRead), CUDA_ERROR_NOT_SUPPORTED);
  EXPECT_EQ(SetAccess(mixed, kFakePage, 0, kRead), CUDA_SUCCESS);
  EXPECT_EQ(SetAccess(mixed + kFakePage, kFakePage, 0, kRead), CUDA_SUCCESS);
  EXPECT_EQ(SetAccess(alike, 2 * kFakePage, 0, kRead), CUDA_SUCCESS);
  Free(alike, 2);
  Free(mixed, 2);
}

TEST_F(FakeMachine, DowngradedAccessCanBeRefused) {
  fake_cuda_refuse_downgraded_access();
  EXPECT_EQ(SetAccess(page, kFakePage, 0, kRead), CUDA_ERROR_NOT_SUPPORTED);
  EXPECT_EQ(SetAccess(page, kFakePage, 0, kReadWrite), CUDA_SUCCESS) << "it stays as it was";
  EXPECT_EQ(SetAccess(page, kFakePage, 1, kRead), CUDA_SUCCESS) << "GPU 1 had none";
}

TEST_F(FakeMachine, PointerSaysWhoseMemoryItIs) {
  CUcontext popped = nullptr;
  int ordinal = -1;
  EXPECT_EQ(Ask(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, page + 8, &ordinal), CUDA_SUCCESS);
  EXPECT_EQ(ordinal, 0);
  EXPECT_EQ(SetAccess(page, kFakePage, 1, kRead), CUDA_SUCCESS);
  EXPECT_EQ(api.cuCtxPushCurrent(contexts[1]), CUDA_SUCCESS);
  ordinal = -1;
  EXPECT_EQ(Ask(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, page, &ordinal), CUDA_SUCCESS);
  EXPECT_EQ(ordinal, 0) << "the owner, whoever asks";
  api.cuCtxPopCurrent(&popped);
}

TEST_F(FakeMachine, PointerThatTheGpuCanNotReadIsNone) {
  CUdeviceptr found = 0;
  EXPECT_EQ(Ask(CU_POINTER_ATTRIBUTE_DEVICE_POINTER, page, &found), CUDA_SUCCESS);
  EXPECT_EQ(found, page);
  const auto on_the_stack = reinterpret_cast<CUdeviceptr>(&found);
  EXPECT_EQ(Ask(CU_POINTER_ATTRIBUTE_DEVICE_POINTER, on_the_stack, &found),
            CUDA_ERROR_INVALID_VALUE);
  const CUdeviceptr closed = TwoPages(false);
  EXPECT_EQ(Ask(CU_POINTER_ATTRIBUTE_DEVICE_POINTER, closed, &found), CUDA_ERROR_INVALID_VALUE);
  Free(closed, 2);
}

TEST_F(FakeMachine, PointersRangeIsOneMapping) {
  const CUdeviceptr pages = TwoPages(false);
  EXPECT_EQ(SetAccess(pages, 2 * kFakePage, 0, kRead), CUDA_SUCCESS);
  CUdeviceptr start = 0;
  std::size_t num_bytes = 0;
  EXPECT_EQ(Ask(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, pages + kFakePage + 8, &start),
            CUDA_SUCCESS);
  EXPECT_EQ(Ask(CU_POINTER_ATTRIBUTE_RANGE_SIZE, pages + 8, &num_bytes), CUDA_SUCCESS);
  EXPECT_EQ(start, pages + kFakePage);
  EXPECT_EQ(num_bytes, kFakePage);
  Free(pages, 2);
}

TEST_F(FakeMachine, KernelWhoseMemoryIsGoneBreaksItsContextForGood) {
  CUdeviceptr start = 0;
  EXPECT_EQ(Mapped(&start), CUDA_SUCCESS);
  EXPECT_EQ(fake_cuda_fill(stream, start, kFakePage, 1), CUDA_SUCCESS) << "it runs later";
  Free(start, 1);
  EXPECT_EQ(api.cuStreamSynchronize(stream), CUDA_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(api.cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(api.cuMemcpyAsync(page, other_page, 8, stream), CUDA_ERROR_ILLEGAL_ADDRESS);
  CUcontext popped = nullptr;
  api.cuCtxPushCurrent(contexts[1]);
  EXPECT_EQ(api.cuCtxSynchronize(), CUDA_SUCCESS) << "GPU 1 has a context of its own";
  api.cuCtxPopCurrent(&popped);
  EXPECT_NE(Violations().find("cuMemUnmap of memory that a kernel's write still uses"),
            std::string::npos);
}

TEST_F(FakeMachine, BrokenContextAnswersEveryCallAlike) {
  fake_cuda_break(0, CUDA_ERROR_LAUNCH_FAILED);
  CUmemGenericAllocationHandle handle = 0;
  EXPECT_EQ(Create(&handle), CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_EQ(api.cuEventRecord(event, stream), CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_EQ(api.cuEventQuery(event), CUDA_ERROR_LAUNCH_FAILED);
}

TEST_F(FakeMachine, ForkedProcessCanNotUseCuda) {
  const pid_t child = fork();
  if (child == 0) {
    int value = 0;
    const bool is_refused = api.cuInit(0) == CUDA_ERROR_NOT_INITIALIZED &&
                            api.cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0) ==
                                CUDA_ERROR_NOT_INITIALIZED;
    _exit(is_refused ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(api.cuCtxSynchronize(), CUDA_SUCCESS) << "the parent goes on";
}

TEST_F(FakeMachine, TimeBetweenEventsIsThatOfTheWorkBetweenThem) {
  const auto elapsed = Find<ElapsedTime>("cuEventElapsedTime", 2000);
  CUevent start = nullptr, end = nullptr;
  EXPECT_EQ(api.cuEventCreate(&start, CU_EVENT_DEFAULT), CUDA_SUCCESS);
  EXPECT_EQ(api.cuEventCreate(&end, CU_EVENT_DEFAULT), CUDA_SUCCESS);
  float ms = -1;
  EXPECT_EQ(elapsed(&ms, start, end), CUDA_ERROR_INVALID_HANDLE) << "neither was recorded";
  api.cuEventRecord(start, stream);
  for (int i = 0; i < 3; ++i) fake_cuda_fill(stream, page, 8, 1);
  api.cuEventRecord(end, stream);
  EXPECT_EQ(elapsed(&ms, start, end), CUDA_ERROR_NOT_READY);
  api.cuStreamSynchronize(stream);
  EXPECT_EQ(elapsed(&ms, start, end), CUDA_SUCCESS);
  EXPECT_FLOAT_EQ(ms, 0.003F);
  api.cuEventRecord(event, stream);
  EXPECT_EQ(elapsed(&ms, start, event), CUDA_ERROR_INVALID_HANDLE) << "made without timing";
  api.cuEventDestroy(start);
  api.cuEventDestroy(end);
}

}  // namespace
}  // namespace dwdp
