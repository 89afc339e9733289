// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/handle.h"

#include <fcntl.h>

#include <bit>
#include <cstdint>

#include "base/error.h"

namespace dwdp {
namespace {

constexpr char kImport[] = "cuMemImportFromShareableHandle of a peer's block";
constexpr char kExport[] = "cuMemExportToShareableHandle of a block";

std::string FdAdvice(CUresult result) {
  if (result != CUDA_ERROR_INVALID_DEVICE) return "";
  return "the peer's GPU must be visible to this process (CUDA_VISIBLE_DEVICES); let every rank "
         "see all GPUs of its host";
}

std::string FabricAdvice(CUresult result) {
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return "";
  return "both GPUs must be in one NVLink domain, and both users must have the same IMEX channel";
}

}  // namespace

CudaHandle::CudaHandle(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes,
                       MemoryUse use)
    : device_(std::move(device)) {
  const CudaScope scope(device_->context());
  const CUmemAllocationProp wanted = device_->properties(use);
  const CudaApi& api = device_->api();
  const CUresult result = api.cuMemCreate(&handle_, num_bytes, &wanted, 0);
  api.Check(result, "cuMemCreate of " + std::to_string(num_bytes) + " bytes for " + NameOf(use),
            result == CUDA_ERROR_OUT_OF_MEMORY ? AdviceWhenFull(use) : "");
}

CudaHandle::CudaHandle(std::shared_ptr<const CudaDevice> device, ShareableHandle handle)
    : device_(std::move(device)) {
  const CudaScope scope(device_->context());
  if (const auto* fd = std::get_if<UniqueFd>(&handle)) {
    ImportFd(*fd);
  } else {
    ImportFabric(std::get<FabricHandle>(handle));
  }
}

CudaHandle::~CudaHandle() { device_->api().cuMemRelease(handle_); }

void CudaHandle::ImportFd(const UniqueFd& fd) {
  const CudaApi& api = device_->api();
  void* descriptor = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd.get()));
  const CUresult result = api.cuMemImportFromShareableHandle(
      &handle_, descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  api.Check(result, kImport, FdAdvice(result));
}

void CudaHandle::ImportFabric(const FabricHandle& handle) {
  CUmemFabricHandle fabric = std::bit_cast<CUmemFabricHandle>(handle);
  const CudaApi& api = device_->api();
  const CUresult result =
      api.cuMemImportFromShareableHandle(&handle_, &fabric, CU_MEM_HANDLE_TYPE_FABRIC);
  api.Check(result, kImport, FabricAdvice(result));
}

ShareableHandle CudaHandle::Export(HandleType type) const {
  const CudaScope scope(device_->context());
  if (type == HandleType::kFileDescriptor) return ExportFd();
  return ExportFabric();
}

UniqueFd CudaHandle::ExportFd() const {
  const CudaApi& api = device_->api();
  int exported = -1;
  api.Check(api.cuMemExportToShareableHandle(&exported, handle_,
                                             CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
            kExport);
  UniqueFd fd(exported);
  if (::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0) ThrowErrno("fcntl of an exported block");
  return fd;
}

FabricHandle CudaHandle::ExportFabric() const {
  const CudaApi& api = device_->api();
  CUmemFabricHandle fabric = {};
  api.Check(api.cuMemExportToShareableHandle(&fabric, handle_, CU_MEM_HANDLE_TYPE_FABRIC, 0),
            kExport);
  return std::bit_cast<FabricHandle>(fabric);
}

}  // namespace dwdp
