// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Rules of the fake CUDA driver that dwdp's own calls never break. Here each is broken once.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "fake_cuda_fixture.h"

namespace dwdp {
namespace {

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
  EXPECT_NE(fake_cuda_fill(of_gpu_1, page, kFakePage, 1), CUDA_SUCCESS);
  EXPECT_EQ(fake_cuda_fill(stream, page, kFakePage, 1), CUDA_SUCCESS);
  fake_cuda_destroy_stream(of_gpu_1);
  EXPECT_EQ(Violations(), "a kernel's write writes memory without that access\n");
}

TEST_F(FakeCuda, MappingBesideAPageIsRefused) {
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr start = 0;
  EXPECT_EQ(Create(&handle), CUDA_SUCCESS);
  EXPECT_EQ(api.cuMemAddressReserve(&start, 2 * kFakePage, 0, 0, 0), CUDA_SUCCESS);
  EXPECT_EQ(start % kFakePage, 0);
  EXPECT_NE(api.cuMemMap(start + 512, kFakePage, 0, handle, 0), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "cuMemMap at an address inside a page\n");
  api.cuMemAddressFree(start, 2 * kFakePage);
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
  EXPECT_EQ(api.cuMemSetAccess(page, kFakePage, &access, 1), CUDA_SUCCESS);
  auto* of_gpu_1 = fake_cuda_make_stream(1);
  std::vector<char> found(kFakePage, 1);
  EXPECT_EQ(fake_cuda_read(of_gpu_1, page, kFakePage, found.data()), CUDA_SUCCESS);
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
  EXPECT_NE(api.cuMemAddressReserve(&start, kFakePage, 0, 0, 1), CUDA_SUCCESS);
  EXPECT_NE(api.cuMemAddressReserve(&start, kFakePage, 3 * kFakePage, 0, 0), CUDA_SUCCESS);
  api.cuMemRelease(handle);
}

}  // namespace
}  // namespace dwdp
