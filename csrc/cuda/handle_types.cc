// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/handle_types.h"

#include <algorithm>
#include <utility>

namespace dwdp {
namespace {

constexpr char kImexAdvice[] =
    "fabric handles need nvidia-imex on every host, and an IMEX channel that this user can open "
    "(/dev/nvidia-caps-imex-channels)";

unsigned Flag(HandleType type) {
  return type == HandleType::kFabric ? CU_MEM_HANDLE_TYPE_FABRIC
                                     : CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
}

// Returns the reason why a trial failed. If memory ran out it throws OutOfResources instead: that
// doesn't tell whether the GPU can share memory.
std::string DescribeTrial(const CudaApi& api, CUresult result, const std::string& symbol) {
  const std::string call = symbol + " of a page with a fabric handle";
  if (result == CUDA_ERROR_OUT_OF_MEMORY) api.Check(result, call);
  return api.Describe(result, call, kImexAdvice);
}

// A page like those of blocks, to try what can be done with them. Each call returns the driver's
// result.
class TriedPage {
 public:
  TriedPage(const CudaApi& api, const CUmemAllocationProp& wanted) : api_(api), wanted_(wanted) {}
  TriedPage(const TriedPage&) = delete;
  TriedPage& operator=(const TriedPage&) = delete;
  ~TriedPage() {
    if (handle_ != 0) api_.cuMemRelease(handle_);
  }

  CUresult Measure() {
    return api_.cuMemGetAllocationGranularity(&num_bytes_, &wanted_,
                                              CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  }
  CUresult Allocate() { return api_.cuMemCreate(&handle_, num_bytes_, &wanted_, 0); }
  CUresult ExportByFabric() {
    CUmemFabricHandle fabric = {};
    return api_.cuMemExportToShareableHandle(&fabric, handle_, CU_MEM_HANDLE_TYPE_FABRIC, 0);
  }

 private:
  const CudaApi& api_;
  const CUmemAllocationProp wanted_;
  std::size_t num_bytes_ = 0;
  CUmemGenericAllocationHandle handle_ = 0;
};

// Allocates a page in the way blocks will be allocated, and exports it by a fabric handle. Returns
// the reason why that failed, or nothing.
std::optional<std::string> TryFabric(const CudaContext& context, const HandleObstacles& obstacles) {
  const CudaApi& api = context.api();
  const CudaScope scope(context);
  TriedPage page(api, ShareableProperties(context.ordinal(), obstacles));
  const std::pair<const char*, CUresult (TriedPage::*)()> steps[] = {
      {"cuMemGetAllocationGranularity", &TriedPage::Measure},
      {"cuMemCreate", &TriedPage::Allocate},
      {"cuMemExportToShareableHandle", &TriedPage::ExportByFabric},
  };
  for (const auto& [symbol, step] : steps) {
    const CUresult result = (page.*step)();
    if (result != CUDA_SUCCESS) return DescribeTrial(api, result, symbol);
  }
  return std::nullopt;
}

}  // namespace

HandleObstacles FindHandleObstacles(const CudaContext& context) {
  HandleObstacles found;
  found[HandleType::kFileDescriptor] = FindAttributeObstacle(
      context, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
      "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED");
  std::optional<std::string>& fabric = found[HandleType::kFabric];
  fabric = FindAttributeObstacle(context, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED,
                                 "HANDLE_TYPE_FABRIC_SUPPORTED");
  if (!fabric) fabric = TryFabric(context, found);
  return found;
}

// A driver that is older than an attribute returns CUDA_ERROR_INVALID_VALUE, which counts as a GPU
// without the attribute.
std::optional<std::string> FindAttributeObstacle(const CudaContext& context,
                                                 CUdevice_attribute attribute,
                                                 const std::string& name) {
  int value = 0;
  const CUresult result = context.api().cuDeviceGetAttribute(&value, attribute, context.device());
  if (result != CUDA_ERROR_INVALID_VALUE) {
    context.api().Check(result, "cuDeviceGetAttribute(" + name + ")");
  }
  if (value != 0) return std::nullopt;
  return "expected GPU " + std::to_string(context.ordinal()) + " to have CU_DEVICE_ATTRIBUTE_" +
         name + ", got none";
}

CUmemAllocationProp LocalProperties(int ordinal) {
  CUmemAllocationProp wanted = {};
  wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE;
  wanted.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = ordinal};
  return wanted;
}

std::optional<std::string> FindHostObstacle(const CudaContext& context) {
  return FindAttributeObstacle(context,
                               CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                               "HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED");
}

// On a host without NUMA the attribute is -1, which the driver doesn't accept as a node; the host's
// memory is node 0 there.
CUmemAllocationProp HostProperties(const CudaContext& context) {
  int node = 0;
  context.api().Check(
      context.api().cuDeviceGetAttribute(&node, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, context.device()),
      "cuDeviceGetAttribute(HOST_NUMA_ID)");
  CUmemAllocationProp wanted = LocalProperties(context.ordinal());
  wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  wanted.location = {.type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = std::max(node, 0)};
  return wanted;
}

CUmemAllocationProp ShareableProperties(int ordinal, const HandleObstacles& obstacles) {
  unsigned types = 0;
  for (const auto& [type, obstacle] : obstacles) {
    if (!obstacle) types |= Flag(type);
  }
  CUmemAllocationProp wanted = LocalProperties(ordinal);
  wanted.requestedHandleTypes = static_cast<CUmemAllocationHandleType>(types);
  return wanted;
}

}  // namespace dwdp
