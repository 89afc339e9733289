// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "physical.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace fake_cuda {
namespace {

constexpr char kFileName[] = "fake-cuda-";

constexpr char kHostName[] = "h";

// The name on this machine of the GPU that has this ordinal in this process, or of the host.
std::string VisibleGpu(int ordinal) {
  if (ordinal == Device::kHost) return kHostName;
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return std::to_string(ordinal);
  std::string left = visible;
  for (; ordinal > 0; --ordinal) left = left.substr(std::min(left.size(), left.find(',') + 1));
  return left.substr(0, left.find(','));
}

// The ordinal that a GPU of this name has in this process; -1 if the process doesn't see it.
int OrdinalOf(const std::string& gpu) {
  if (gpu == kHostName) return Device::kHost;
  for (int ordinal = 0; ordinal < Device::kNumGpus; ++ordinal) {
    if (VisibleGpu(ordinal) == gpu) return ordinal;
  }
  return -1;
}

// The name of the GPU whose memory a descriptor refers to; empty for other files.
std::string GpuOf(int fd) {
  char target[256] = {};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  if (readlink(link.c_str(), target, sizeof(target) - 1) < 0) return "";
  const std::string text = target;
  const auto at = text.find(kFileName);
  if (at == text.npos) return "";
  return text.substr(at + sizeof(kFileName) - 1, 1);
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

// The directory that stands for the NVLink domain; empty on a host without nvidia-imex.
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

PhysicalPtr Imported(int fd, int gpu) {
  return std::make_shared<const Physical>(fd, FileBytes(fd), FileId(fd), gpu);
}

}  // namespace

int NumVisibleGpus() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return Device::kNumGpus;
  const std::string names = visible;
  const auto num_commas = std::count(names.begin(), names.end(), ',');
  return names.empty() ? 0 : std::min(Device::kNumGpus, static_cast<int>(num_commas) + 1);
}

Physical::~Physical() {
  close(fd);
  if (!is_imported) device().num_used_bytes[gpu] -= num_bytes;
  if (!fabric_file.empty()) unlink(fabric_file.c_str());
}

CUresult MakePhysical(std::size_t num_bytes, int gpu, unsigned handle_types, PhysicalPtr* made) {
  const bool is_fabric = (handle_types & CU_MEM_HANDLE_TYPE_FABRIC) != 0;
  if (is_fabric && FabricDirectory().empty()) return CUDA_ERROR_NOT_PERMITTED;
  if (!device().Take(gpu, num_bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  std::string path;
  const std::string visible = VisibleGpu(gpu);
  const int fd = is_fabric ? MakeFabricFile(visible, &path) : MakeMemoryFile(visible);
  *made =
      std::make_shared<const Physical>(fd, num_bytes, FileId(fd), gpu, false, handle_types, path);
  const bool has_room = fd >= 0 && ftruncate(fd, static_cast<off_t>(num_bytes)) == 0;
  return has_room ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult ImportPhysical(int fd, PhysicalPtr* imported) {
  const std::string gpu = GpuOf(fd);
  if (gpu.empty()) return CUDA_ERROR_INVALID_VALUE;
  const int ordinal = OrdinalOf(gpu);
  if (ordinal < 0) return CUDA_ERROR_INVALID_DEVICE;
  const int own = dup(fd);
  if (own < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *imported = Imported(own, ordinal);
  return CUDA_SUCCESS;
}

// The GPU needn't be visible to this process: it may be on another host.
CUresult ImportPhysical(const CUmemFabricHandle& fabric, PhysicalPtr* imported) {
  if (FabricDirectory().empty()) return CUDA_ERROR_NOT_PERMITTED;
  const std::string name(reinterpret_cast<const char*>(fabric.data),
                         strnlen(reinterpret_cast<const char*>(fabric.data), sizeof(fabric.data)));
  if (!name.starts_with(kFileName)) return CUDA_ERROR_INVALID_VALUE;
  const int fd = open((FabricDirectory() + name).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return CUDA_ERROR_NOT_PERMITTED;  // of another domain or IMEX channel
  *imported = Imported(fd, -1);
  return CUDA_SUCCESS;
}

CUresult ExportPhysical(const Physical& physical, int* fd) {
  *fd = dup(physical.fd);
  return *fd < 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult ExportPhysical(const Physical& physical, CUmemFabricHandle* fabric) {
  const std::string name = physical.fabric_file.substr(FabricDirectory().size());
  *fabric = {};
  std::memcpy(fabric->data, name.data(), std::min(name.size(), sizeof(fabric->data) - 1));
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
