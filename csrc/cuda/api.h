// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The CUDA driver, opened at run time. Nothing links to it, so the core can be imported without
// one.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include <memory>
#include <string>

namespace dwdp {

// Each function with the CUDA version in which its signature appeared. A driver refuses requests
// for versions above its own, so each function is requested at the version in this list.
#define DWDP_CUDA_SYMBOLS(X)                  \
  X(cuGetErrorName, 6000)                     \
  X(cuGetErrorString, 6000)                   \
  X(cuInit, 2000)                             \
  X(cuDeviceGet, 2000)                        \
  X(cuDeviceGetAttribute, 2000)               \
  X(cuDevicePrimaryCtxRetain, 7000)           \
  X(cuDevicePrimaryCtxRelease, 11000)         \
  X(cuCtxPushCurrent, 4000)                   \
  X(cuCtxPopCurrent, 4000)                    \
  X(cuCtxSynchronize, 2000)                   \
  X(cuCtxGetStreamPriorityRange, 5050)        \
  X(cuMemGetAllocationGranularity, 10020)     \
  X(cuMemCreate, 10020)                       \
  X(cuMemRelease, 10020)                      \
  X(cuMemAddressReserve, 10020)               \
  X(cuMemAddressFree, 10020)                  \
  X(cuMemMap, 10020)                          \
  X(cuMemUnmap, 10020)                        \
  X(cuMemSetAccess, 10020)                    \
  X(cuMemExportToShareableHandle, 10020)      \
  X(cuMemImportFromShareableHandle, 10020)    \
  X(cuMemcpyAsync, 4000)                      \
  X(cuMemcpyDtoDAsync, 3020)                  \
  X(cuMemsetD8Async, 3020)                    \
  X(cuStreamCreateWithPriority, 5050)         \
  X(cuStreamDestroy, 4000)                    \
  X(cuStreamSynchronize, 2000)                \
  X(cuStreamWaitEvent, 3020)                  \
  X(cuStreamIsCapturing, 10000)               \
  X(cuThreadExchangeStreamCaptureMode, 10010) \
  X(cuEventCreate, 2000)                      \
  X(cuEventRecord, 2000)                      \
  X(cuEventQuery, 2000)                       \
  X(cuEventDestroy, 4000)                     \
  X(cuEventElapsedTime, 2000)

// Functions that are null if the driver is older than the version in this list.
#define DWDP_OPTIONAL_CUDA_SYMBOLS(X) X(cuMemcpyBatchAsync, 12080)

// The driver's functions, under their own names.
struct CudaApi {
#define DWDP_DECLARE(name, version) PFN_##name##_v##version name = nullptr;
  DWDP_CUDA_SYMBOLS(DWDP_DECLARE)
  DWDP_OPTIONAL_CUDA_SYMBOLS(DWDP_DECLARE)
#undef DWDP_DECLARE

  // Opens the driver's library, which then stays open until the process ends, and initialises it.
  // Throws DriverError if the library or one of its functions is missing.
  static std::shared_ptr<const CudaApi> Load(const std::string& library);

  // Returns "WHAT failed: CUDA_ERROR_... (TEXT); ADVICE". If `advice` is empty, the usual advice
  // for this error takes its place.
  std::string Describe(CUresult result, const std::string& what,
                       const std::string& advice = "") const;
  // Throws a DriverError with that sentence unless the call succeeded. It is an OutOfResources if
  // memory ran out.
  void Check(CUresult result, const std::string& what, const std::string& advice = "") const;
};

}  // namespace dwdp
