// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <utility>

#include "device.h"
#include "findings.h"

namespace fake_cuda {
namespace {

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

CUresult Memory::Create(CUmemGenericAllocationHandle* handle, std::size_t num_bytes, int gpu,
                        unsigned handle_types) {
  if (num_bytes == 0 || num_bytes % granularity != 0)
    return Refuse("cuMemCreate of part of a page");
  PhysicalPtr made;
  const CUresult result = MakePhysical(num_bytes, gpu, handle_types, &made);
  if (result == CUDA_SUCCESS) *handle = Hold(std::move(made));
  return result;
}

CUresult Memory::Granularity(std::size_t* num_bytes, CUmemAllocationGranularity_flags which) const {
  if (which != CU_MEM_ALLOC_GRANULARITY_MINIMUM && which != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) {
    return Refuse("cuMemGetAllocationGranularity of neither kind");
  }
  const bool is_least = which == CU_MEM_ALLOC_GRANULARITY_MINIMUM;
  *num_bytes = is_least ? granularity : std::max(granularity, recommended_granularity);
  return CUDA_SUCCESS;
}

CUresult Memory::Export(int* fd, CUmemGenericAllocationHandle handle) const {
  const Physical* physical = Exportable(handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  return physical == nullptr ? CUDA_ERROR_INVALID_VALUE : ExportPhysical(*physical, fd);
}

CUresult Memory::Export(CUmemFabricHandle* fabric, CUmemGenericAllocationHandle handle) const {
  const Physical* physical = Exportable(handle, CU_MEM_HANDLE_TYPE_FABRIC);
  return physical == nullptr ? CUDA_ERROR_INVALID_VALUE : ExportPhysical(*physical, fabric);
}

CUresult Memory::Import(CUmemGenericAllocationHandle* handle, int fd) {
  PhysicalPtr imported;
  const CUresult result = ImportPhysical(fd, &imported);
  if (result == CUDA_SUCCESS) *handle = Hold(std::move(imported));
  return result;
}

CUresult Memory::Import(CUmemGenericAllocationHandle* handle, const CUmemFabricHandle& fabric) {
  PhysicalPtr imported;
  const CUresult result = ImportPhysical(fabric, &imported);
  if (result == CUDA_SUCCESS) *handle = Hold(std::move(imported));
  return result;
}

CUresult Memory::Release(CUmemGenericAllocationHandle handle) {
  return handles_.erase(handle) ? CUDA_SUCCESS
                                : Refuse("cuMemRelease of a handle that isn't there");
}

CUresult Memory::Reserve(CUdeviceptr* start, std::size_t num_bytes) {
  if (num_bytes == 0 || num_bytes % granularity != 0) {
    return Refuse("cuMemAddressReserve of part of a page");
  }
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
    return Refuse("cuMemAddressFree of a range that was not reserved as one");
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
  if (start % granularity != 0) return Refuse("cuMemMap at an address inside a page");
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
  if (whole.empty()) return Refuse("cuMemUnmap of a range that is not whole mappings");
  mmap(Pointer(start), num_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  for (const auto mapping : whole) mappings_.erase(mapping);
  return CUDA_SUCCESS;
}

CUresult Memory::SetAccess(CUdeviceptr start, std::size_t num_bytes, int gpu,
                           CUmemAccess_flags flags) {
  const auto whole = WholeMappings(start, num_bytes);
  if (whole.empty()) return Refuse("cuMemSetAccess of a range that is not whole mappings");
  if (const CUresult refused = RefuseAccess(whole, gpu, flags)) return refused;
  for (const auto mapping : whole) mapping->second.access[gpu] = flags;
  mprotect(Pointer(start), num_bytes, Protection(flags));
  return CUDA_SUCCESS;
}

// Returns an error for the reasons for which real drivers may refuse access.
CUresult Memory::RefuseAccess(const std::vector<Mappings::iterator>& whole, int gpu,
                              CUmemAccess_flags flags) {
  std::set<std::pair<bool, unsigned>> kinds;
  for (const auto mapping : whole) {
    const auto& [num_bytes, physical, access] = mapping->second;
    if (!device().CanRead(gpu, physical->gpu)) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    const auto given = access.find(gpu);
    const bool is_less = given != access.end() && given->second > flags;
    if (is_less && device().refuses_downgraded_access) return CUDA_ERROR_NOT_SUPPORTED;
    kinds.emplace(physical->is_imported, physical->handle_types);
  }
  const bool is_mixed = kinds.size() > 1;
  return is_mixed && device().refuses_mixed_access ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;
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

CUresult Memory::Describe(void* answer, CUpointer_attribute which, CUdeviceptr address,
                          int gpu) const {
  auto mapping = mappings_.upper_bound(address);
  if (mapping == mappings_.begin()) return CUDA_ERROR_INVALID_VALUE;
  --mapping;
  const auto& [start, found] = *mapping;
  const bool is_there = address - start < found.num_bytes;
  if (!is_there || !found.Allows(gpu, CU_MEM_ACCESS_FLAGS_PROT_READ)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  switch (which) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(answer) =
          found.physical->gpu == Device::kHost ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      *static_cast<CUdeviceptr*>(answer) = address;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(answer) = found.physical->gpu;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *static_cast<CUdeviceptr*>(answer) = start;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      *static_cast<std::size_t*>(answer) = found.num_bytes;
      return CUDA_SUCCESS;
    default:
      return Refuse("cuPointerGetAttribute of an attribute that dwdp doesn't use");
  }
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

int Memory::num_exportable() const {
  std::set<std::uint64_t> found;
  for (const auto& [name, physical] : handles_) {
    if (physical->handle_types != 0) found.insert(physical->id);
  }
  for (const auto& [start, mapping] : mappings_) {
    if (mapping.physical->handle_types != 0) found.insert(mapping.physical->id);
  }
  return static_cast<int>(found.size());
}

std::size_t Memory::FirstGranularity() {
  const char* given = std::getenv("FAKE_CUDA_GRANULARITY");
  return given == nullptr ? std::size_t{2} << 20 : std::stoul(given);
}

CUmemGenericAllocationHandle Memory::Hold(PhysicalPtr physical) {
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
