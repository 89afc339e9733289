// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda_handle.h"

#include <cstdint>

namespace dwdp {

CudaHandle::CudaHandle(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes)
    : device_(std::move(device)) {
  const CudaScope scope(*device_);
  const CUmemAllocationProp wanted = device_->properties();
  const CudaApi& api = device_->api();
  api.Check(api.cuMemCreate(&handle_, num_bytes, &wanted, 0),
            "cuMemCreate of " + std::to_string(num_bytes) + " bytes");
}

CudaHandle::CudaHandle(std::shared_ptr<const CudaDevice> device, UniqueFd fd)
    : device_(std::move(device)) {
  const CudaScope scope(*device_);
  const CudaApi& api = device_->api();
  void* descriptor = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd.get()));
  const CUresult result = api.cuMemImportFromShareableHandle(
      &handle_, descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  const bool is_hidden = result == CUDA_ERROR_INVALID_DEVICE;
  api.Check(
      result, "cuMemImportFromShareableHandle of a peer's block",
      is_hidden ? "the peer's GPU must be visible to this process (CUDA_VISIBLE_DEVICES)" : "");
}

CudaHandle::~CudaHandle() { device_->api().cuMemRelease(handle_); }

UniqueFd CudaHandle::Export() const {
  const CudaScope scope(*device_);
  const CudaApi& api = device_->api();
  int fd = -1;
  api.Check(
      api.cuMemExportToShareableHandle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
      "cuMemExportToShareableHandle of a block");
  return UniqueFd(fd);
}

}  // namespace dwdp
