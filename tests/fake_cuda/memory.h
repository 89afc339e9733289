// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The handles that name physical memory, and the addresses where it is mapped.
#pragma once

#include <cuda.h>

#include <map>
#include <string>
#include <vector>

#include "physical.h"

namespace fake_cuda {

// Bytes of physical memory behind a range of addresses.
struct Segment {
  std::uint64_t physical;
  std::size_t start;
  std::size_t num_bytes;
};

class Memory {
 public:
  CUresult Create(CUmemGenericAllocationHandle* handle, std::size_t num_bytes, int gpu,
                  unsigned handle_types);
  CUresult Granularity(std::size_t* num_bytes, CUmemAllocationGranularity_flags which) const;
  CUresult Export(int* fd, CUmemGenericAllocationHandle handle) const;
  CUresult Export(CUmemFabricHandle* fabric, CUmemGenericAllocationHandle handle) const;
  CUresult Import(CUmemGenericAllocationHandle* handle, int fd);
  CUresult Import(CUmemGenericAllocationHandle* handle, const CUmemFabricHandle& fabric);
  CUresult Release(CUmemGenericAllocationHandle handle);
  CUresult Reserve(CUdeviceptr* start, std::size_t num_bytes);
  CUresult Free(CUdeviceptr start, std::size_t num_bytes);
  CUresult Map(CUdeviceptr start, std::size_t num_bytes, std::size_t offset,
               CUmemGenericAllocationHandle handle);
  CUresult Unmap(CUdeviceptr start, std::size_t num_bytes);
  CUresult SetAccess(CUdeviceptr start, std::size_t num_bytes, int gpu, CUmemAccess_flags flags);

  // Finds the physical memory behind a range of addresses. Returns false unless the GPU may read,
  // or with `writes` write, all of it.
  bool Resolve(CUdeviceptr start, std::size_t num_bytes, int gpu, bool writes,
               std::vector<Segment>* segments) const;
  // Answers cuPointerGetAttribute in the context of `gpu`.
  CUresult Describe(void* answer, CUpointer_attribute which, CUdeviceptr address, int gpu) const;
  bool IsReserved(CUdeviceptr address) const;
  std::string leaks() const;
  // The number of allocations of this process that can be exported and are still in use.
  int num_exportable() const;

  std::size_t granularity = FirstGranularity();  // the minimum
  std::size_t recommended_granularity = 0;       // the minimum if that is larger

 private:
  struct Mapping {
    std::size_t num_bytes;
    PhysicalPtr physical;
    std::map<int, CUmemAccess_flags> access{};  // by GPU; others have none

    bool Allows(int gpu, CUmemAccess_flags wanted) const;
  };
  using Mappings = std::map<CUdeviceptr, Mapping>;

  static std::size_t FirstGranularity();
  CUmemGenericAllocationHandle Hold(PhysicalPtr physical);
  // The memory of a handle. Null if the handle is unknown, or if its memory wasn't allocated for
  // export by this type.
  const Physical* Exportable(CUmemGenericAllocationHandle handle, unsigned type) const;
  // The mappings that fill a range from its first byte to its last. Empty if the range has a hole
  // or ends inside a mapping.
  std::vector<Mappings::iterator> WholeMappings(CUdeviceptr start, std::size_t num_bytes);
  static CUresult RefuseAccess(const std::vector<Mappings::iterator>& whole, int gpu,
                               CUmemAccess_flags flags);

  std::map<CUmemGenericAllocationHandle, PhysicalPtr> handles_;
  std::map<CUdeviceptr, std::size_t> ranges_;
  Mappings mappings_;
  CUmemGenericAllocationHandle last_handle_ = 0;
};

Memory& memory();

}  // namespace fake_cuda
