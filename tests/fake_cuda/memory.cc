// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "findings.h"

namespace fake_cuda {
namespace {

constexpr char kFileName[] = "fake-cuda-";

// Which GPU of the machine an ordinal of this process means.
std::string VisibleGpu(int ordinal) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return std::to_string(ordinal);
  std::string left = visible;
  for (; ordinal > 0; --ordinal) left = left.substr(std::min(left.size(), left.find(',') + 1));
  return left.substr(0, left.find(','));
}

// The GPU whose memory a descriptor is; empty for other files.
std::string GpuOf(int fd) {
  char target[256] = {};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  if (readlink(link.c_str(), target, sizeof(target) - 1) < 0) return "";
  const std::string text = target;
  const auto at = text.find(kFileName);
  if (at == text.npos) return "";
  return text.substr(at + sizeof(kFileName) - 1, 1);
}

bool IsVisible(const std::string& gpu) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return visible == nullptr || std::string(visible).find(gpu) != std::string::npos;
}

std::uint64_t FileId(int fd) {
  struct stat status = {};
  fstat(fd, &status);
  return (static_cast<std::uint64_t>(status.st_dev) << 40) ^ status.st_ino;
}

std::size_t FileBytes(int fd) {
  struct stat status = {};
  return fstat(fd, &status) == 0 ? static_cast<std::size_t>(status.st_size) : 0;
}

// Where the hosts of one NVLink domain find each other's memory; empty without nvidia-imex.
std::string FabricDirectory() {
  const char* given = std::getenv("FAKE_CUDA_FABRIC");
  return given == nullptr ? "" : std::string(given) + "/";
}

int MakeMemoryFile(const std::string& gpu) {
  return memfd_create((kFileName + gpu).c_str(), MFD_CLOEXEC);
}

int MakeFabricFile(const std::string& gpu, std::string* path) {
  *path = FabricDirectory() + kFileName + gpu + "-XXXXXX";
  return mkostemp(path->data(), O_CLOEXEC);
}

void* Pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

int Protection(CUmemAccess_flags flags) {
  if (flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return PROT_READ | PROT_WRITE;
  return flags == CU_MEM_ACCESS_FLAGS_PROT_READ ? PROT_READ : PROT_NONE;
}

CUresult Refuse(const std::string& text) {
  findings().Violate(text);
  return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

Physical::~Physical() {
  close(fd);
  if (!fabric_file.empty()) unlink(fabric_file.c_str());
}

CUresult Memory::Create(CUmemGenericAllocationHandle* handle, std::size_t num_bytes, int gpu,
                        unsigned handle_types) {
  if (num_bytes == 0 || num_bytes % granularity != 0)
    return Refuse("cuMemCreate of part of a page");
  const bool is_fabric = (handle_types & CU_MEM_HANDLE_TYPE_FABRIC) != 0;
  if (is_fabric && FabricDirectory().empty()) return CUDA_ERROR_NOT_PERMITTED;
  std::string path;
  const std::string visible = VisibleGpu(gpu);
  const int fd = is_fabric ? MakeFabricFile(visible, &path) : MakeMemoryFile(visible);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(num_bytes)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = Hold(std::make_shared<Physical>(fd, num_bytes, FileId(fd), handle_types, path));
  return CUDA_SUCCESS;
}

CUresult Memory::Export(int* fd, CUmemGenericAllocationHandle handle) const {
  const Physical* physical = Exportable(handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  if (physical == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *fd = dup(physical->fd);
  return *fd < 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult Memory::Export(CUmemFabricHandle* fabric, CUmemGenericAllocationHandle handle) const {
  const Physical* physical = Exportable(handle, CU_MEM_HANDLE_TYPE_FABRIC);
  if (physical == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::string name = physical->fabric_file.substr(FabricDirectory().size());
  *fabric = {};
  std::memcpy(fabric->data, name.data(), std::min(name.size(), sizeof(fabric->data) - 1));
  return CUDA_SUCCESS;
}

CUresult Memory::Import(CUmemGenericAllocationHandle* handle, int fd) {
  const std::string gpu = GpuOf(fd);
  if (gpu.empty()) return CUDA_ERROR_INVALID_VALUE;
  if (!IsVisible(gpu)) return CUDA_ERROR_INVALID_DEVICE;
  const int own = dup(fd);
  if (own < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = Hold(std::make_shared<Physical>(own, FileBytes(own), FileId(own)));
  return CUDA_SUCCESS;
}

// Whether the GPU is visible doesn't matter: it may be another host's.
CUresult Memory::Import(CUmemGenericAllocationHandle* handle, const CUmemFabricHandle& fabric) {
  if (FabricDirectory().empty()) return CUDA_ERROR_NOT_PERMITTED;
  const std::string name(reinterpret_cast<const char*>(fabric.data),
                         strnlen(reinterpret_cast<const char*>(fabric.data), sizeof(fabric.data)));
  if (!name.starts_with(kFileName)) return CUDA_ERROR_INVALID_VALUE;
  const int fd = open((FabricDirectory() + name).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return CUDA_ERROR_NOT_PERMITTED;  // another domain's, or of another channel
  *handle = Hold(std::make_shared<Physical>(fd, FileBytes(fd), FileId(fd)));
  return CUDA_SUCCESS;
}

CUresult Memory::Release(CUmemGenericAllocationHandle handle) {
  return handles_.erase(handle) ? CUDA_SUCCESS
                                : Refuse("cuMemRelease of a handle that isn't there");
}

CUresult Memory::Reserve(CUdeviceptr* start, std::size_t num_bytes) {
  if (num_bytes == 0 || num_bytes % granularity != 0) return Refuse("cuMemAddressReserve of part");
  void* base =
      mmap(nullptr, num_bytes + granularity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const auto got = reinterpret_cast<CUdeviceptr>(base);
  *start = (got + granularity - 1) / granularity * granularity;
  if (*start > got) munmap(base, *start - got);
  munmap(Pointer(*start + num_bytes), got + granularity - *start);
  ranges_[*start] = num_bytes;
  return CUDA_SUCCESS;
}

CUresult Memory::Free(CUdeviceptr start, std::size_t num_bytes) {
  const auto range = ranges_.find(start);
  if (range == ranges_.end() || range->second != num_bytes) {
    return Refuse("cuMemAddressFree of a range that was not reserved so");
  }
  const auto mapped = mappings_.lower_bound(start);
  if (mapped != mappings_.end() && mapped->first < start + num_bytes) {
    return Refuse("cuMemAddressFree of a range with mappings");
  }
  munmap(Pointer(start), num_bytes);
  ranges_.erase(range);
  return CUDA_SUCCESS;
}

CUresult Memory::Map(CUdeviceptr start, std::size_t num_bytes, std::size_t offset,
                     CUmemGenericAllocationHandle handle) {
  const auto found = handles_.find(handle);
  if (found == handles_.end()) return Refuse("cuMemMap of a handle that isn't there");
  if (offset != 0) return Refuse("cuMemMap at an offset of the allocation");
  if (num_bytes != found->second->num_bytes) return Refuse("cuMemMap of part of an allocation");
  if (start % granularity != 0) return Refuse("cuMemMap beside a page");
  if (!IsReserved(start) || !IsReserved(start + num_bytes - 1)) {
    return Refuse("cuMemMap outside of a reserved range");
  }
  const auto next = mappings_.lower_bound(start);
  if (next != mappings_.end() && next->first < start + num_bytes) return Refuse("cuMemMap twice");
  if (next != mappings_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.num_bytes > start) return Refuse("cuMemMap twice");
  }
  if (mmap(Pointer(start), num_bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, found->second->fd, 0) ==
      MAP_FAILED) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  mappings_[start] = {num_bytes, found->second};
  return CUDA_SUCCESS;
}

CUresult Memory::Unmap(CUdeviceptr start, std::size_t num_bytes) {
  const auto whole = WholeMappings(start, num_bytes);
  if (whole.empty()) return Refuse("cuMemUnmap of what is not whole mappings");
  mmap(Pointer(start), num_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  for (const auto mapping : whole) mappings_.erase(mapping);
  return CUDA_SUCCESS;
}

CUresult Memory::SetAccess(CUdeviceptr start, std::size_t num_bytes, int gpu,
                           CUmemAccess_flags flags) {
  const auto whole = WholeMappings(start, num_bytes);
  if (whole.empty()) return Refuse("cuMemSetAccess of what is not whole mappings");
  for (const auto mapping : whole) mapping->second.access[gpu] = flags;
  mprotect(Pointer(start), num_bytes, Protection(flags));
  return CUDA_SUCCESS;
}

bool Memory::Mapping::Allows(int gpu, CUmemAccess_flags wanted) const {
  const auto found = access.find(gpu);
  return found != access.end() && found->second >= wanted;
}

bool Memory::Resolve(CUdeviceptr start, std::size_t num_bytes, int gpu, bool writes,
                     std::vector<Segment>* segments) const {
  const auto wanted = writes ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ;
  while (num_bytes > 0) {
    auto mapping = mappings_.upper_bound(start);
    if (mapping == mappings_.begin()) return false;
    --mapping;
    const std::size_t at = start - mapping->first;
    if (at >= mapping->second.num_bytes || !mapping->second.Allows(gpu, wanted)) return false;
    const std::size_t part = std::min(num_bytes, mapping->second.num_bytes - at);
    segments->push_back({mapping->second.physical->id, at, part});
    start += part;
    num_bytes -= part;
  }
  return true;
}

bool Memory::IsReserved(CUdeviceptr address) const {
  auto range = ranges_.upper_bound(address);
  if (range == ranges_.begin()) return false;
  --range;
  return address < range->first + range->second;
}

std::string Memory::leaks() const {
  std::string text;
  if (!handles_.empty()) text += std::to_string(handles_.size()) + " handles\n";
  if (!mappings_.empty()) text += std::to_string(mappings_.size()) + " mappings\n";
  if (!ranges_.empty()) text += std::to_string(ranges_.size()) + " address ranges\n";
  return text;
}

std::size_t Memory::FirstGranularity() {
  const char* given = std::getenv("FAKE_CUDA_GRANULARITY");
  return given == nullptr ? std::size_t{2} << 20 : std::stoul(given);
}

CUmemGenericAllocationHandle Memory::Hold(std::shared_ptr<Physical> physical) {
  handles_[++last_handle_] = std::move(physical);
  return last_handle_;
}

const Physical* Memory::Exportable(CUmemGenericAllocationHandle handle, unsigned type) const {
  const auto found = handles_.find(handle);
  if (found != handles_.end() && (found->second->handle_types & type) != 0) {
    return found->second.get();
  }
  findings().Violate(
      "cuMemExportToShareableHandle of memory that isn't there, or wasn't made for that type");
  return nullptr;
}

std::vector<Memory::Mappings::iterator> Memory::WholeMappings(CUdeviceptr start,
                                                              std::size_t num_bytes) {
  std::vector<Mappings::iterator> found;
  CUdeviceptr at = start;
  for (auto mapping = mappings_.find(start); mapping != mappings_.end(); ++mapping) {
    if (mapping->first != at || at >= start + num_bytes) break;
    found.push_back(mapping);
    at += mapping->second.num_bytes;
  }
  if (at != start + num_bytes) found.clear();
  return found;
}

Memory& memory() {
  static Memory all;
  return all;
}

}  // namespace fake_cuda
