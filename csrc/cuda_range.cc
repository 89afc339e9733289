// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda_range.h"

namespace dwdp {
namespace {

// The driver didn't wait, as some stream of the context is under graph capture.
bool IsRefusedByCapture(CUresult result) {
  return result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED &&
         result <= CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
}

}  // namespace

CudaRange::CudaRange(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes)
    : device_(std::move(device)), num_bytes_(num_bytes) {
  const CudaScope scope(device_->context());
  const CudaApi& api = device_->api();
  api.Check(api.cuMemAddressReserve(&start_, num_bytes_, 0, 0, 0),
            "cuMemAddressReserve of " + std::to_string(num_bytes_) + " bytes");
}

CudaRange::~CudaRange() {
  const CudaApi& api = device_->api();
  CUcontext popped = nullptr;
  const bool is_current = api.cuCtxPushCurrent(device_->context().get()) == CUDA_SUCCESS;
  const CUresult waited = is_current ? api.cuCtxSynchronize() : CUDA_SUCCESS;
  if (!IsRefusedByCapture(waited)) Unmap();
  if (is_current) api.cuCtxPopCurrent(&popped);
}

void CudaRange::Unmap() {
  const CudaApi& api = device_->api();
  for (const auto& [offset, mapped] : mappings_) api.cuMemUnmap(start_ + offset, mapped);
  api.cuMemAddressFree(start_, num_bytes_);
}

void CudaRange::Map(std::size_t offset, CUmemGenericAllocationHandle handle,
                    std::size_t num_bytes) {
  const CudaScope scope(device_->context());
  const CudaApi& api = device_->api();
  const auto place = mappings_.emplace(offset, num_bytes).first;
  const CUresult result = api.cuMemMap(start_ + offset, num_bytes, 0, handle, 0);
  if (result != CUDA_SUCCESS) mappings_.erase(place);
  api.Check(result, "cuMemMap of " + std::to_string(num_bytes) + " bytes");
}

void CudaRange::SetAccess(std::size_t offset, std::size_t num_bytes, CUmemAccess_flags flags) {
  const CudaScope scope(device_->context());
  const CudaApi& api = device_->api();
  const CUmemAccessDesc access = {
      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_->ordinal()}, .flags = flags};
  const CUresult result = api.cuMemSetAccess(start_ + offset, num_bytes, &access, 1);
  const bool is_apart =
      result == CUDA_ERROR_INVALID_DEVICE || result == CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  api.Check(
      result, "cuMemSetAccess of " + std::to_string(num_bytes) + " bytes",
      is_apart ? "this GPU can't reach the peer's memory (NVLink, or PCIe peer to peer)" : "");
}

}  // namespace dwdp
