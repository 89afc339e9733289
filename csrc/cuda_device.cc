// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda_device.h"

#include "error.h"

namespace dwdp {
namespace {

constexpr char kImexAdvice[] =
    "fabric handles need nvidia-imex on every host, and an IMEX channel that this user can open "
    "(/dev/nvidia-caps-imex-channels)";

unsigned Flag(HandleType type) {
  return type == HandleType::kFabric ? CU_MEM_HANDLE_TYPE_FABRIC
                                     : CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
}

}  // namespace

PrimaryContext::PrimaryContext(std::shared_ptr<const CudaApi> api, int ordinal)
    : api_(std::move(api)) {
  const std::string gpu = " of GPU " + std::to_string(ordinal);
  api_->Check(api_->cuDeviceGet(&device_, ordinal), "cuDeviceGet" + gpu);
  api_->Check(api_->cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain" + gpu);
}

PrimaryContext::~PrimaryContext() { api_->cuDevicePrimaryCtxRelease(device_); }

CudaDevice::CudaDevice(std::shared_ptr<const CudaApi> api, int ordinal)
    : context_(std::move(api), ordinal), ordinal_(ordinal) {
  const std::string pages_obstacle =
      AttributeObstacle(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                        "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED");
  Require(pages_obstacle.empty(), pages_obstacle + "; dwdp can't share memory of this GPU");
  std::string& fd_obstacle = obstacles_[HandleType::kFileDescriptor];
  fd_obstacle = AttributeObstacle(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
                                  "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED");
  const std::string fabric_obstacle = FabricObstacle();
  Require(fd_obstacle.empty() || fabric_obstacle.empty(),
          fd_obstacle + "; " + fabric_obstacle + "; dwdp can't share memory of this GPU");
  obstacles_[HandleType::kFabric] = fabric_obstacle;
  const CUmemAllocationProp wanted = properties();
  this->api().Check(this->api().cuMemGetAllocationGranularity(&granularity_, &wanted,
                                                              CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                    "cuMemGetAllocationGranularity of GPU " + std::to_string(ordinal));
}

CUmemAllocationProp CudaDevice::properties() const {
  unsigned types = 0;
  for (const auto& [type, obstacle] : obstacles_) {
    if (obstacle.empty()) types |= Flag(type);
  }
  return PropertiesFor(types);
}

CUmemAllocationProp CudaDevice::PropertiesFor(unsigned handle_types) const {
  CUmemAllocationProp wanted = {};
  wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  wanted.requestedHandleTypes = static_cast<CUmemAllocationHandleType>(handle_types);
  wanted.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = ordinal_};
  return wanted;
}

// A driver that is older than an attribute calls it an invalid value.
std::string CudaDevice::AttributeObstacle(CUdevice_attribute attribute,
                                          const std::string& name) const {
  int value = 0;
  const CUresult result = api().cuDeviceGetAttribute(&value, attribute, context_.device());
  if (result != CUDA_ERROR_INVALID_VALUE) {
    api().Check(result, "cuDeviceGetAttribute(" + name + ")");
  }
  if (value != 0) return "";
  return "expected GPU " + std::to_string(ordinal_) + " to have CU_DEVICE_ATTRIBUTE_" + name +
         ", got none";
}

std::string CudaDevice::FabricObstacle() const {
  const std::string lacks = AttributeObstacle(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED,
                                              "HANDLE_TYPE_FABRIC_SUPPORTED");
  return lacks.empty() ? FabricTrialObstacle() : lacks;
}

// With what memory will have: the types that have no obstacle so far, and fabric handles.
std::string CudaDevice::FabricTrialObstacle() const {
  const CudaScope scope(*this);
  const CUmemAllocationProp wanted = PropertiesFor(
      properties().requestedHandleTypes | static_cast<unsigned>(CU_MEM_HANDLE_TYPE_FABRIC));
  std::size_t num_bytes = 0;
  const CUresult measured =
      api().cuMemGetAllocationGranularity(&num_bytes, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  if (measured != CUDA_SUCCESS) return ObstacleOf(measured, "cuMemGetAllocationGranularity");
  CUmemGenericAllocationHandle page = 0;
  const CUresult made = api().cuMemCreate(&page, num_bytes, &wanted, 0);
  if (made != CUDA_SUCCESS) return ObstacleOf(made, "cuMemCreate");
  CUmemFabricHandle handle = {};
  const CUresult exported =
      api().cuMemExportToShareableHandle(&handle, page, CU_MEM_HANDLE_TYPE_FABRIC, 0);
  api().cuMemRelease(page);
  return exported == CUDA_SUCCESS ? "" : ObstacleOf(exported, "cuMemExportToShareableHandle");
}

// A full GPU says nothing about what it can do.
std::string CudaDevice::ObstacleOf(CUresult result, const std::string& what) const {
  const std::string call = what + " of a page with a fabric handle";
  if (result == CUDA_ERROR_OUT_OF_MEMORY) api().Check(result, call);
  return api().Describe(result, call, kImexAdvice);
}

void CudaDevice::Zero(std::byte* address, std::size_t num_bytes) const {
  const CudaScope scope(*this);
  api().Check(api().cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(address), 0, num_bytes, nullptr),
              "cuMemsetD8Async of " + std::to_string(num_bytes) + " bytes");
  api().Check(api().cuCtxSynchronize(), "cuCtxSynchronize after cuMemsetD8Async");
}

CudaScope::CudaScope(const CudaDevice& device) : api_(device.api()) {
  api_.Check(api_.cuCtxPushCurrent(device.context()), "cuCtxPushCurrent");
}

CudaScope::~CudaScope() {
  CUcontext popped = nullptr;
  api_.cuCtxPopCurrent(&popped);
}

}  // namespace dwdp
