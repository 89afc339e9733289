// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/range.h"

namespace dwdp {
namespace {

constexpr char kWritableViews[] =
    "serving goes on, but this GPU doesn't protect the views of the experts: a kernel that writes "
    "to an expert weight spoils it unnoticed, for every rank that reads it";

constexpr char kNoAddresses[] =
    "addresses ran out, not memory: lift this process's limit on them (ulimit -v)";

// Whether the driver refuses this access to several mappings in one call, or to a single mapping.
// Any other error would come back with every further call.
bool IsRefusalOfAccess(CUresult result) {
  return result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_NOT_SUPPORTED;
}

// Whether the driver refused to wait because a stream of the context is under graph capture.
bool IsRefusedByCapture(CUresult result) {
  return result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED &&
         result <= CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
}

}  // namespace

CudaRange::CudaRange(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes)
    : device_(std::move(device)), num_bytes_(num_bytes) {
  const CudaScope scope(device_->context());
  const CudaApi& api = device_->api();
  const CUresult result = api.cuMemAddressReserve(&start_, num_bytes_, 0, 0, 0);
  api.Check(result, "cuMemAddressReserve of " + std::to_string(num_bytes_) + " bytes",
            result == CUDA_ERROR_OUT_OF_MEMORY ? kNoAddresses : "");
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
  CheckAccess(TrySetAccess(offset, num_bytes, flags), num_bytes);
}

std::string CudaRange::MakeReadOnly() {
  const CUresult of_all = TrySetAccess(0, num_bytes_, CU_MEM_ACCESS_FLAGS_PROT_READ);
  if (!IsRefusalOfAccess(of_all)) {
    CheckAccess(of_all, num_bytes_);
    return "";
  }
  std::string warning;
  for (const auto& [offset, mapped] : mappings_) {
    const CUresult of_one = TrySetAccess(offset, mapped, CU_MEM_ACCESS_FLAGS_PROT_READ);
    if (IsRefusalOfAccess(of_one)) {
      SetAccess(offset, mapped, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
      warning = device_->api().Describe(of_one, "read-only cuMemSetAccess", kWritableViews);
    } else {
      CheckAccess(of_one, mapped);
    }
  }
  return warning;
}

CUresult CudaRange::TrySetAccess(std::size_t offset, std::size_t num_bytes,
                                 CUmemAccess_flags flags) {
  const CudaScope scope(device_->context());
  const CUmemAccessDesc access = {
      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_->ordinal()}, .flags = flags};
  return device_->api().cuMemSetAccess(start_ + offset, num_bytes, &access, 1);
}

void CudaRange::CheckAccess(CUresult result, std::size_t num_bytes) const {
  const bool is_apart =
      result == CUDA_ERROR_INVALID_DEVICE || result == CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  device_->api().Check(
      result, "cuMemSetAccess of " + std::to_string(num_bytes) + " bytes",
      is_apart ? "this GPU can't reach the peer's memory (NVLink, or PCIe peer to peer)" : "");
}

}  // namespace dwdp
