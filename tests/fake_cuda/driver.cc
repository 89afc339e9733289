// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The entry points. Each counts its calls, fails if a test says so, and works under one lock.
#include <cuda.h>
#include <cudaTypedefs.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "device.h"
#include "findings.h"
#include "memory.h"
#include "physical.h"
#include "timeline.h"

#define COUNT(name)                               \
  fake_cuda::TakeTime(name);                      \
  const std::lock_guard guard(fake_cuda::lock()); \
  if (const CUresult fault = findings().Enter(name)) return fault

#define ENTER(name) \
  COUNT(name);      \
  if (!device().is_initialised()) return CUDA_ERROR_NOT_INITIALIZED

// For calls that need a current context. NVIDIA's driver is less strict for some of them.
#define ENTER_IN_CONTEXT(name) \
  ENTER(name);                 \
  if (const CUresult refused = RequireContext(name)) return refused

// For calls that a graph capture may forbid, even to other threads than its own.
#define REFUSE_IF_UNSAFE() \
  if (const CUresult unsafe = timeline().RefuseUnsafe()) return unsafe

namespace fake_cuda {
namespace {

void TakeTime(const char* symbol) {
  int delay_ms = 0;
  {
    const std::lock_guard guard(lock());
    delay_ms = findings().delay_ms(symbol);
  }
  if (delay_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
}

CUresult Refuse(const std::string& text) {
  findings().Violate(text);
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult RequireContext(const char* what) {
  const int gpu = CurrentGpu();
  return gpu >= 0 ? device().broken[gpu] : Refuse(std::string(what) + " without a context");
}

// A null handle names the null stream of the current context.
CUstream Named(CUstream stream) {
  return stream != nullptr ? stream : Timeline::NullStream(CurrentGpu());
}

std::string Bytes(const char* what, std::size_t num_bytes) {
  return std::string(what) + " of " + std::to_string(num_bytes) + " bytes";
}

void* Host(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

// Addresses that were never reserved are host memory, which the copy may touch if `may_be_host`.
Work CopyOf(const char* what, CUdeviceptr to, CUdeviceptr from, std::size_t num_bytes,
            bool may_be_host) {
  Work work{Bytes(what, num_bytes), {}, [=] { std::memcpy(Host(to), Host(from), num_bytes); }};
  if (!may_be_host || memory().IsReserved(to)) work.accesses.push_back({to, num_bytes, true});
  if (!may_be_host || memory().IsReserved(from)) work.accesses.push_back({from, num_bytes, false});
  return work;
}

}  // namespace

CUresult GetErrorName(CUresult error, const char** text) {
  static const std::map<CUresult, const char*> kNames = {
#define NAMED(name) {name, #name}
      NAMED(CUDA_ERROR_INVALID_VALUE),   NAMED(CUDA_ERROR_OUT_OF_MEMORY),
      NAMED(CUDA_ERROR_NOT_INITIALIZED), NAMED(CUDA_ERROR_NO_DEVICE),
      NAMED(CUDA_ERROR_INVALID_DEVICE),  NAMED(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED),
      NAMED(CUDA_ERROR_ILLEGAL_ADDRESS), NAMED(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
      NAMED(CUDA_ERROR_NOT_PERMITTED),   NAMED(CUDA_ERROR_NOT_SUPPORTED),
#undef NAMED
  };
  const auto found = kNames.find(error);
  *text = found == kNames.end() ? nullptr : found->second;
  return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult GetErrorString(CUresult, const char** text) {
  *text = "as the fake driver was told";
  return CUDA_SUCCESS;
}

CUresult Init(unsigned flags) {
  COUNT("cuInit");
  if (flags != 0) return Refuse("cuInit with flags");
  if (device().was_forked()) return CUDA_ERROR_NOT_INITIALIZED;
  device().Initialise();
  return CUDA_SUCCESS;
}

CUresult DeviceGet(CUdevice* found, int ordinal) {
  ENTER("cuDeviceGet");
  if (ordinal < 0 || ordinal >= Device::kNumGpus) return CUDA_ERROR_INVALID_DEVICE;
  *found = ordinal;
  return CUDA_SUCCESS;
}

CUresult DriverGetVersion(int* version) {
  COUNT("cuDriverGetVersion");
  *version = device().version;
  return CUDA_SUCCESS;
}

// The environment variable CUDA_VISIBLE_DEVICES counts, as with real drivers.
CUresult DeviceGetCount(int* count) {
  ENTER("cuDeviceGetCount");
  *count = NumVisibleGpus();
  return CUDA_SUCCESS;
}

CUresult DeviceGetName(char* name, int num_bytes, CUdevice gpu) {
  ENTER("cuDeviceGetName");
  std::snprintf(name, num_bytes, "Fake GPU %d", gpu);
  return CUDA_SUCCESS;
}

CUresult DeviceTotalMem(std::size_t* num_bytes, CUdevice gpu) {
  ENTER("cuDeviceTotalMem");
  *num_bytes = device().num_bytes[gpu];
  return CUDA_SUCCESS;
}

CUresult DeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  ENTER("cuDeviceGetAttribute");
  const bool is_known =
      attribute != CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED || device().version >= 12030;
  if (!is_known) return CUDA_ERROR_INVALID_VALUE;
  *value = device().attribute(attribute);
  return CUDA_SUCCESS;
}

// As with real drivers, no GPU is its own peer.
CUresult DeviceCanAccessPeer(int* can, CUdevice gpu, CUdevice peer) {
  ENTER("cuDeviceCanAccessPeer");
  *can = gpu != peer && device().CanRead(gpu, peer) ? 1 : 0;
  return CUDA_SUCCESS;
}

CUresult DevicePrimaryCtxRetain(CUcontext* context, CUdevice gpu) {
  ENTER("cuDevicePrimaryCtxRetain");
  ++device().num_retained[gpu];
  *context = ContextOf(gpu);
  return CUDA_SUCCESS;
}

CUresult DevicePrimaryCtxRelease(CUdevice gpu) {
  ENTER("cuDevicePrimaryCtxRelease");
  const int left = --device().num_retained[gpu];
  if (left < 0) return Refuse("a context released too often");
  return left == 0 && timeline().HasEvents(gpu) ? Refuse("a context released before its events")
                                                : CUDA_SUCCESS;
}

CUresult CtxPushCurrent(CUcontext context) {
  ENTER("cuCtxPushCurrent");
  const int gpu = GpuOf(context);
  if (gpu < 0 || device().num_retained[gpu] == 0) {
    return Refuse("cuCtxPushCurrent of no retained context");
  }
  Push(gpu);
  return CUDA_SUCCESS;
}

CUresult CtxPopCurrent(CUcontext* context) {
  ENTER("cuCtxPopCurrent");
  const int gpu = Pop();
  if (gpu < 0) return Refuse("a context popped too often");
  *context = ContextOf(gpu);
  return CUDA_SUCCESS;
}

CUresult CtxSynchronize() {
  ENTER_IN_CONTEXT("cuCtxSynchronize");
  REFUSE_IF_UNSAFE();
  return timeline().SynchronizeAll(CurrentGpu());
}

CUresult CtxGetStreamPriorityRange(int* lowest, int* highest) {
  ENTER_IN_CONTEXT("cuCtxGetStreamPriorityRange");
  *lowest = 0;
  *highest = -5;
  return CUDA_SUCCESS;
}

CUresult MemGetInfo(std::size_t* free, std::size_t* total) {
  ENTER_IN_CONTEXT("cuMemGetInfo");
  *total = device().num_bytes[CurrentGpu()];
  *free = *total - device().num_used_bytes[CurrentGpu()];
  return CUDA_SUCCESS;
}

CUresult PointerGetAttribute(void* answer, CUpointer_attribute which, CUdeviceptr address) {
  ENTER_IN_CONTEXT("cuPointerGetAttribute");
  return memory().Describe(answer, which, address, CurrentGpu());
}

CUresult MemGetAllocationGranularity(std::size_t* granularity, const CUmemAllocationProp*,
                                     CUmemAllocationGranularity_flags which) {
  ENTER("cuMemGetAllocationGranularity");
  return memory().Granularity(granularity, which);
}

// The host has one NUMA node, and its memory can't be exported by fabric handle.
CUresult CreateOnHost(CUmemGenericAllocationHandle* handle, std::size_t num_bytes,
                      const CUmemAllocationProp& wanted) {
  if (device().attribute(CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (wanted.location.id != 0) return Refuse("cuMemCreate on a node that the host lacks");
  if ((wanted.requestedHandleTypes & CU_MEM_HANDLE_TYPE_FABRIC) != 0) {
    return Refuse("cuMemCreate of host memory with a fabric handle");
  }
  return memory().Create(handle, num_bytes, Device::kHost, wanted.requestedHandleTypes);
}

CUresult MemCreate(CUmemGenericAllocationHandle* handle, std::size_t num_bytes,
                   const CUmemAllocationProp* wanted, unsigned long long flags) {
  ENTER_IN_CONTEXT("cuMemCreate");
  REFUSE_IF_UNSAFE();
  if (wanted->location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA) {
    return CreateOnHost(handle, num_bytes, *wanted);
  }
  if (flags != 0 || wanted->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      wanted->location.type != CU_MEM_LOCATION_TYPE_DEVICE || wanted->location.id < 0 ||
      wanted->location.id >= Device::kNumGpus) {
    return Refuse("cuMemCreate of memory that no GPU has");
  }
  return memory().Create(handle, num_bytes, wanted->location.id, wanted->requestedHandleTypes);
}

CUresult MemRelease(CUmemGenericAllocationHandle handle) {
  ENTER("cuMemRelease");
  return memory().Release(handle);
}

CUresult MemAddressReserve(CUdeviceptr* start, std::size_t num_bytes, std::size_t alignment,
                           CUdeviceptr, unsigned long long flags) {
  ENTER_IN_CONTEXT("cuMemAddressReserve");
  if (flags != 0 || (alignment & (alignment - 1)) != 0) {
    return Refuse("cuMemAddressReserve with flags, or aligned to no power of two");
  }
  return memory().Reserve(start, num_bytes);
}

CUresult MemAddressFree(CUdeviceptr start, std::size_t num_bytes) {
  ENTER("cuMemAddressFree");
  return memory().Free(start, num_bytes);
}

CUresult MemMap(CUdeviceptr start, std::size_t num_bytes, std::size_t offset,
                CUmemGenericAllocationHandle handle, unsigned long long flags) {
  ENTER_IN_CONTEXT("cuMemMap");
  if (flags != 0) return Refuse("cuMemMap with flags");
  return memory().Map(start, num_bytes, offset, handle);
}

CUresult MemUnmap(CUdeviceptr start, std::size_t num_bytes) {
  ENTER("cuMemUnmap");
  timeline().CheckUnused(start, num_bytes, "cuMemUnmap");
  return memory().Unmap(start, num_bytes);
}

CUresult MemSetAccess(CUdeviceptr start, std::size_t num_bytes, const CUmemAccessDesc* access,
                      std::size_t num_access) {
  ENTER_IN_CONTEXT("cuMemSetAccess");
  const CUmemLocation& location = access->location;
  if (num_access != 1 || location.type != CU_MEM_LOCATION_TYPE_DEVICE || location.id < 0 ||
      location.id >= Device::kNumGpus) {
    return Refuse("cuMemSetAccess for anything but one GPU");
  }
  return memory().SetAccess(start, num_bytes, location.id, access->flags);
}

CUresult MemExportToShareableHandle(void* exported, CUmemGenericAllocationHandle handle,
                                    CUmemAllocationHandleType type, unsigned long long flags) {
  ENTER_IN_CONTEXT("cuMemExportToShareableHandle");
  if (flags != 0) return Refuse("cuMemExportToShareableHandle with flags");
  if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
    return memory().Export(static_cast<CUmemFabricHandle*>(exported), handle);
  }
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  return memory().Export(static_cast<int*>(exported), handle);
}

CUresult MemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* exported,
                                      CUmemAllocationHandleType type) {
  ENTER_IN_CONTEXT("cuMemImportFromShareableHandle");
  if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
    return memory().Import(handle, *static_cast<CUmemFabricHandle*>(exported));
  }
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  return memory().Import(handle, static_cast<int>(reinterpret_cast<std::uintptr_t>(exported)));
}

CUresult MemcpyAsync(CUdeviceptr to, CUdeviceptr from, std::size_t num_bytes, CUstream stream) {
  ENTER_IN_CONTEXT("cuMemcpyAsync");
  return timeline().Enqueue(Named(stream), CopyOf("cuMemcpyAsync", to, from, num_bytes, true));
}

CUresult MemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, std::size_t num_bytes, CUstream stream) {
  ENTER_IN_CONTEXT("cuMemcpyDtoDAsync");
  return timeline().Enqueue(Named(stream), CopyOf("cuMemcpyDtoDAsync", to, from, num_bytes, false));
}

// Under capture it returns an error but doesn't break the capture, which then lacks the copies:
// real drivers do the same.
CUresult MemcpyBatchAsync(CUdeviceptr* to, CUdeviceptr* from, std::size_t* sizes, std::size_t count,
                          CUmemcpyAttributes* attributes, std::size_t* attribute_of,
                          std::size_t num_attributes, std::size_t*, CUstream stream) {
  ENTER_IN_CONTEXT("cuMemcpyBatchAsync");
  if (timeline().IsCapturing(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream == nullptr) return Refuse("cuMemcpyBatchAsync on the null stream");
  if (count == 0 || count > 1024 || num_attributes != 1 || attribute_of[0] != 0) {
    return Refuse("cuMemcpyBatchAsync of " + std::to_string(count) + " copies");
  }
  if (attributes->srcAccessOrder != CU_MEMCPY_SRC_ACCESS_ORDER_STREAM ||
      (attributes->flags & ~CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE) != 0) {
    return Refuse("cuMemcpyBatchAsync that reads sources out of order, or with other flags");
  }
  std::vector<Work> batch;
  for (std::size_t i = 0; i < count; ++i) {
    if (sizes[i] == 0) return Refuse("cuMemcpyBatchAsync of nothing");
    batch.push_back(CopyOf("cuMemcpyBatchAsync", to[i], from[i], sizes[i], false));
  }
  return timeline().EnqueueBatch(stream, std::move(batch));
}

CUresult MemsetD8Async(CUdeviceptr to, unsigned char value, std::size_t num_bytes,
                       CUstream stream) {
  ENTER_IN_CONTEXT("cuMemsetD8Async");
  return timeline().Enqueue(Named(stream), {Bytes("cuMemsetD8Async", num_bytes),
                                            {{to, num_bytes, true}},
                                            [=] { std::memset(Host(to), value, num_bytes); }});
}

CUresult StreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  ENTER_IN_CONTEXT("cuStreamCreateWithPriority");
  if (flags != CU_STREAM_NON_BLOCKING || priority > 0 || priority < -5) {
    return Refuse("cuStreamCreateWithPriority that blocks, or out of range");
  }
  return timeline().Create(stream, CurrentGpu());
}

CUresult StreamDestroy(CUstream stream) {
  ENTER("cuStreamDestroy");
  return timeline().Destroy(stream);
}

CUresult StreamSynchronize(CUstream stream) {
  ENTER("cuStreamSynchronize");
  REFUSE_IF_UNSAFE();
  if (stream == nullptr) return Refuse("cuStreamSynchronize of the null stream");
  return timeline().Synchronize(stream);
}

CUresult StreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  ENTER_IN_CONTEXT("cuStreamWaitEvent");
  return timeline().Wait(Named(stream), event);
}

CUresult StreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  ENTER_IN_CONTEXT("cuStreamIsCapturing");
  if (timeline().IsBarred(Named(stream))) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  *status = timeline().IsCapturing(stream) ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                           : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

CUresult ThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  ENTER("cuThreadExchangeStreamCaptureMode");
  Timeline::ExchangeMode(mode);
  return CUDA_SUCCESS;
}

CUresult EventCreate(CUevent* event, unsigned flags) {
  ENTER_IN_CONTEXT("cuEventCreate");
  if ((flags & ~CU_EVENT_DISABLE_TIMING) != 0) return Refuse("cuEventCreate with other flags");
  return timeline().Create(event, CurrentGpu(), flags == CU_EVENT_DEFAULT);
}

CUresult EventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  ENTER("cuEventElapsedTime");
  return timeline().Elapsed(milliseconds, start, end);
}

CUresult EventRecord(CUevent event, CUstream stream) {
  ENTER_IN_CONTEXT("cuEventRecord");
  return timeline().Record(event, Named(stream));
}

CUresult EventQuery(CUevent event) {
  ENTER("cuEventQuery");
  REFUSE_IF_UNSAFE();
  return timeline().Query(event);
}

CUresult EventDestroy(CUevent event) {
  ENTER("cuEventDestroy");
  return timeline().Destroy(event);
}

// Name, function, and the CUDA version whose signature it has.
struct Symbol {
  const char* name;
  int version;
  void* function;
};

#define SYMBOL(name, version) \
  {"cu" #name, version,       \
   reinterpret_cast<void*>(static_cast<PFN_cu##name##_v##version>(fake_cuda::name))}

const Symbol kSymbols[] = {
    SYMBOL(GetErrorName, 6000),
    SYMBOL(GetErrorString, 6000),
    SYMBOL(Init, 2000),
    SYMBOL(DriverGetVersion, 2020),
    SYMBOL(DeviceGet, 2000),
    SYMBOL(DeviceGetCount, 2000),
    SYMBOL(DeviceGetName, 2000),
    SYMBOL(DeviceTotalMem, 3020),
    SYMBOL(DeviceGetAttribute, 2000),
    SYMBOL(DeviceCanAccessPeer, 4000),
    SYMBOL(DevicePrimaryCtxRetain, 7000),
    SYMBOL(DevicePrimaryCtxRelease, 11000),
    SYMBOL(CtxPushCurrent, 4000),
    SYMBOL(CtxPopCurrent, 4000),
    SYMBOL(CtxSynchronize, 2000),
    SYMBOL(CtxGetStreamPriorityRange, 5050),
    SYMBOL(MemGetInfo, 3020),
    SYMBOL(PointerGetAttribute, 4000),
    SYMBOL(MemGetAllocationGranularity, 10020),
    SYMBOL(MemCreate, 10020),
    SYMBOL(MemRelease, 10020),
    SYMBOL(MemAddressReserve, 10020),
    SYMBOL(MemAddressFree, 10020),
    SYMBOL(MemMap, 10020),
    SYMBOL(MemUnmap, 10020),
    SYMBOL(MemSetAccess, 10020),
    SYMBOL(MemExportToShareableHandle, 10020),
    SYMBOL(MemImportFromShareableHandle, 10020),
    SYMBOL(MemcpyAsync, 4000),
    SYMBOL(MemcpyDtoDAsync, 3020),
    SYMBOL(MemcpyBatchAsync, 12080),
    SYMBOL(MemsetD8Async, 3020),
    SYMBOL(StreamCreateWithPriority, 5050),
    SYMBOL(StreamDestroy, 4000),
    SYMBOL(StreamSynchronize, 2000),
    SYMBOL(StreamWaitEvent, 3020),
    SYMBOL(StreamIsCapturing, 10000),
    SYMBOL(ThreadExchangeStreamCaptureMode, 10010),
    SYMBOL(EventCreate, 2000),
    SYMBOL(EventElapsedTime, 2000),
    SYMBOL(EventRecord, 2000),
    SYMBOL(EventQuery, 2000),
    SYMBOL(EventDestroy, 4000),
};

}  // namespace fake_cuda

using fake_cuda::device;
using fake_cuda::findings;

// Refuses versions above the driver's own, as real drivers do, and versions that are not the
// symbol's in kSymbols.
extern "C" CUresult cuGetProcAddress_v2(const char* name, void** function, int version, cuuint64_t,
                                        CUdriverProcAddressQueryResult*) {
  COUNT("cuGetProcAddress");
  *function = nullptr;
  if (version > device().version) return CUDA_ERROR_INVALID_VALUE;
  for (const auto& symbol : fake_cuda::kSymbols) {
    if (std::strcmp(symbol.name, name) == 0 && symbol.version == version) {
      *function = symbol.function;
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_NOT_FOUND;
}
