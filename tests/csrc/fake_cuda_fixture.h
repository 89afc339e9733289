// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "cuda/api.h"
#include "fake_cuda.h"

// Finds the fake driver's entry points, among them those that CudaApi hasn't got.
extern "C" CUresult cuGetProcAddress_v2(const char* name, void** function, int version,
                                        cuuint64_t flags, CUdriverProcAddressQueryResult* status);

namespace dwdp {

inline constexpr std::size_t kFakePage = 4096;

// Retains the contexts of two GPUs, and makes that of GPU 0 current.
class FakeCuda : public testing::Test {
 protected:
  FakeCuda() {
    fake_cuda_reset(0);
    fake_cuda_set_granularity(kFakePage);
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
      api.cuMemUnmap(start, kFakePage);
      api.cuMemAddressFree(start, kFakePage);
    }
    fake_cuda_destroy_stream(stream);
    if (event != nullptr) api.cuEventDestroy(event);
    CUcontext popped = nullptr;
    api.cuCtxPopCurrent(&popped);
    for (int gpu = 0; gpu < 2; ++gpu) api.cuDevicePrimaryCtxRelease(gpu);
    EXPECT_EQ(std::string(fake_cuda_leaks()), "");
  }

  static CUmemAllocationProp OfGpu(int gpu) {
    CUmemAllocationProp wanted = {};
    wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    wanted.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu};
    return wanted;
  }

  CUresult Create(CUmemGenericAllocationHandle* handle) {
    const CUmemAllocationProp wanted = OfGpu(0);
    return api.cuMemCreate(handle, kFakePage, &wanted, 0);
  }

  CUresult SetAccess(CUdeviceptr start, std::size_t num_bytes, int gpu, CUmemAccess_flags flags) {
    const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu},
                                    .flags = flags};
    return api.cuMemSetAccess(start, num_bytes, &access, 1);
  }

  // Maps a new page of GPU 0 that GPU 0 may write.
  CUresult Mapped(CUdeviceptr* start) {
    CUmemGenericAllocationHandle handle = 0;
    EXPECT_EQ(Create(&handle), CUDA_SUCCESS);
    EXPECT_EQ(api.cuMemAddressReserve(start, kFakePage, 0, 0, 0), CUDA_SUCCESS);
    EXPECT_EQ(api.cuMemMap(*start, kFakePage, 0, handle, 0), CUDA_SUCCESS);
    EXPECT_EQ(api.cuMemRelease(handle), CUDA_SUCCESS);
    return SetAccess(*start, kFakePage, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
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

  // Finds an entry point that CudaApi hasn't got.
  template <typename Function>
  static Function Find(const char* name, int version) {
    void* found = nullptr;
    EXPECT_EQ(cuGetProcAddress_v2(name, &found, version, 0, nullptr), CUDA_SUCCESS) << name;
    return reinterpret_cast<Function>(found);
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

}  // namespace dwdp
