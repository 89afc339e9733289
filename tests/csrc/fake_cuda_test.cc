// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Rules of the fake CUDA driver that dwdp's own calls never break: each broken once.
#include "fake_cuda.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda_api.h"

namespace dwdp {
namespace {

constexpr std::size_t kPage = 4096;

// Two GPUs' contexts, that of GPU 0 current.
class FakeCuda : public testing::Test {
 protected:
  FakeCuda() {
    fake_cuda_reset(0);
    fake_cuda_set_granularity(kPage);
    for (int gpu = 0; gpu < 2; ++gpu) {
      EXPECT_EQ(api.cuDevicePrimaryCtxRetain(&contexts[gpu], gpu), CUDA_SUCCESS);
    }
    EXPECT_EQ(api.cuCtxPushCurrent(contexts[0]), CUDA_SUCCESS);
    EXPECT_EQ(api.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
    stream = static_cast<CUstream>(fake_cuda_make_stream(0));
    EXPECT_EQ(Mapped(&page), CUDA_SUCCESS);
    EXPECT_EQ(Mapped(&other_page), CUDA_SUCCESS);
  }

  ~FakeCuda() override {
    for (const CUdeviceptr start : {page, other_page}) {
      api.cuMemUnmap(start, kPage);
      api.cuMemAddressFree(start, kPage);
    }
    fake_cuda_destroy_stream(stream);
    if (event != nullptr) api.cuEventDestroy(event);
    CUcontext popped = nullptr;
    api.cuCtxPopCurrent(&popped);
    for (int gpu = 0; gpu < 2; ++gpu) api.cuDevicePrimaryCtxRelease(gpu);
    EXPECT_EQ(std::string(fake_cuda_leaks()), "");
  }

  CUresult Create(CUmemGenericAllocationHandle* handle) {
    CUmemAllocationProp wanted = {};
    wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    wanted.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0};
    return api.cuMemCreate(handle, kPage, &wanted, 0);
  }

  // A page of GPU 0 that GPU 0 may write.
  CUresult Mapped(CUdeviceptr* start) {
    CUmemGenericAllocationHandle handle = 0;
    EXPECT_EQ(Create(&handle), CUDA_SUCCESS);
    EXPECT_EQ(api.cuMemAddressReserve(start, kPage, 0, 0, 0), CUDA_SUCCESS);
    EXPECT_EQ(api.cuMemMap(*start, kPage, 0, handle, 0), CUDA_SUCCESS);
    EXPECT_EQ(api.cuMemRelease(handle), CUDA_SUCCESS);
    const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0},
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    return api.cuMemSetAccess(*start, kPage, &access, 1);
  }

  CUresult Batch(std::vector<CUdeviceptr> to, std::vector<CUdeviceptr> from,
                 std::vector<std::size_t> sizes, CUmemcpyAttributes attributes = InOrder()) {
    std::vector<std::size_t> attribute_of(to.size(), 0);
    std::size_t failed = 0;
    return api.cuMemcpyBatchAsync(to.data(), from.data(), sizes.data(), to.size(), &attributes,
                                  attribute_of.data(), 1, &failed, stream);
  }

  static CUmemcpyAttributes InOrder() {
    CUmemcpyAttributes attributes = {};
    attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    return attributes;
  }

  static std::string Violations() { return fake_cuda_violations(); }

  const std::shared_ptr<const CudaApi> shared_api = CudaApi::Load(FAKE_CUDA_LIBRARY);
  const CudaApi& api = *shared_api;
  CUcontext contexts[2] = {};
  CUevent event = nullptr;
  CUstream stream = nullptr;
  CUdeviceptr page = 0;
  CUdeviceptr other_page = 0;
};

TEST_F(FakeCuda, BatchOfIndependentCopiesIsTaken) {
  EXPECT_EQ(Batch({page, page + 8}, {other_page, other_page}, {8, 8}), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "");
}

TEST_F(FakeCuda, BatchWhoseOrderMattersIsRefused) {
  EXPECT_NE(Batch({page, page + 16}, {other_page, page}, {8, 8}), CUDA_SUCCESS) << "RAW";
  EXPECT_NE(Batch({page, page + 4}, {other_page, other_page}, {8, 8}), CUDA_SUCCESS) << "WAW";
  EXPECT_EQ(Violations(), "a batch whose order matters\na batch whose order matters\n");
}

TEST_F(FakeCuda, BatchOfNothingOrWithoutAnAccessOrderIsRefused) {
  EXPECT_NE(Batch({page}, {other_page}, {0}), CUDA_SUCCESS);
  EXPECT_NE(Batch({page}, {other_page}, {8}, {}), CUDA_SUCCESS);
  CUmemcpyAttributes flagged = InOrder();
  flagged.flags = 2;
  EXPECT_NE(Batch({page}, {other_page}, {8}, flagged), CUDA_SUCCESS);
}

TEST_F(FakeCuda, AccessIsThatOfOneGpu) {
  auto* of_gpu_1 = fake_cuda_make_stream(1);
  EXPECT_NE(fake_cuda_fill(of_gpu_1, page, kPage, 1), CUDA_SUCCESS);
  EXPECT_EQ(fake_cuda_fill(stream, page, kPage, 1), CUDA_SUCCESS);
  fake_cuda_destroy_stream(of_gpu_1);
  EXPECT_EQ(Violations(), "a kernel's write writes memory without that access\n");
}

TEST_F(FakeCuda, MappingBesideAPageIsRefused) {
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr start = 0;
  EXPECT_EQ(Create(&handle), CUDA_SUCCESS);
  EXPECT_EQ(api.cuMemAddressReserve(&start, 2 * kPage, 0, 0, 0), CUDA_SUCCESS);
  EXPECT_EQ(start % kPage, 0);
  EXPECT_NE(api.cuMemMap(start + 512, kPage, 0, handle, 0), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "cuMemMap beside a page\n");
  api.cuMemAddressFree(start, 2 * kPage);
  api.cuMemRelease(handle);
}

TEST_F(FakeCuda, EventIsRecordedInStreamsOfItsContextOnly) {
  auto* of_gpu_1 = static_cast<CUstream>(fake_cuda_make_stream(1));
  EXPECT_EQ(api.cuEventRecord(event, of_gpu_1), CUDA_ERROR_INVALID_HANDLE);
  EXPECT_EQ(api.cuEventRecord(event, stream), CUDA_SUCCESS);
  EXPECT_EQ(api.cuStreamWaitEvent(of_gpu_1, event, 0), CUDA_SUCCESS) << "waiting is for all";
  fake_cuda_destroy_stream(of_gpu_1);
}

TEST_F(FakeCuda, WaitForWhatWasNeverRecordedIsAViolation) {
  EXPECT_NE(api.cuStreamWaitEvent(stream, event, 0), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "wait for an event that was never recorded\n");
}

TEST_F(FakeCuda, EventOfACaptureIsOfNoUseOutside) {
  fake_cuda_begin_capture(stream);
  EXPECT_EQ(api.cuEventRecord(event, stream), CUDA_SUCCESS);
  fake_cuda_destroy_graph(fake_cuda_end_capture(stream));
  EXPECT_EQ(api.cuStreamWaitEvent(stream, event, 0), CUDA_ERROR_CAPTURED_EVENT);
  EXPECT_EQ(api.cuEventQuery(event), CUDA_ERROR_CAPTURED_EVENT);
}

TEST_F(FakeCuda, NullStreamIsBarredWhileItsContextCaptures) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  fake_cuda_begin_capture(stream);
  EXPECT_EQ(api.cuStreamIsCapturing(nullptr, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  EXPECT_EQ(api.cuCtxPushCurrent(contexts[1]), CUDA_SUCCESS);
  EXPECT_EQ(api.cuStreamIsCapturing(nullptr, &status), CUDA_SUCCESS) << "another context's";
  CUcontext popped = nullptr;
  api.cuCtxPopCurrent(&popped);
  fake_cuda_destroy_graph(fake_cuda_end_capture(stream));
}

TEST_F(FakeCuda, SynchronizingWaitsForOneContext) {
  const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 1},
                                  .flags = CU_MEM_ACCESS_FLAGS_PROT_READ};
  EXPECT_EQ(api.cuMemSetAccess(page, kPage, &access, 1), CUDA_SUCCESS);
  auto* of_gpu_1 = fake_cuda_make_stream(1);
  std::vector<char> found(kPage, 1);
  EXPECT_EQ(fake_cuda_read(of_gpu_1, page, kPage, found.data()), CUDA_SUCCESS);
  EXPECT_EQ(api.cuCtxSynchronize(), CUDA_SUCCESS);
  EXPECT_EQ(found[0], 1) << "the other GPU's kernel has not run";
  fake_cuda_synchronize(of_gpu_1);
  EXPECT_EQ(found[0], 0);
  fake_cuda_destroy_stream(of_gpu_1);
}

TEST_F(FakeCuda, ContextOutlivesItsEvents) {
  EXPECT_NE(api.cuDevicePrimaryCtxRelease(0), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "a context released before its events\n");
  api.cuDevicePrimaryCtxRetain(&contexts[0], 0);
}

TEST_F(FakeCuda, UnknownFlagsAreRefused) {
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr start = 0;
  int fd = -1;
  EXPECT_EQ(Create(&handle), CUDA_SUCCESS);
  EXPECT_NE(
      api.cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 1),
      CUDA_SUCCESS);
  EXPECT_NE(api.cuMemAddressReserve(&start, kPage, 0, 0, 1), CUDA_SUCCESS);
  EXPECT_NE(api.cuMemAddressReserve(&start, kPage, 3 * kPage, 0, 0), CUDA_SUCCESS);
  api.cuMemRelease(handle);
}

}  // namespace
}  // namespace dwdp
