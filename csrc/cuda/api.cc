// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/api.h"

#include <dlfcn.h>

#include "base/error.h"

namespace dwdp {
namespace {

// Looks up the functions of the driver's library by name and version.
class Resolver {
 public:
  explicit Resolver(const std::string& library) : library_(library) {
    void* opened = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
      throw DriverError("expected the CUDA driver in " + library + ", got " + ::dlerror() +
                        "; install NVIDIA's driver");
    }
    get_ = reinterpret_cast<PFN_cuGetProcAddress_v12000>(::dlsym(opened, "cuGetProcAddress_v2"));
    old_get_ = reinterpret_cast<PFN_cuGetProcAddress_v11030>(::dlsym(opened, "cuGetProcAddress"));
    Require(get_ != nullptr || old_get_ != nullptr,
            "expected a CUDA driver of version 11.3 or later in " + library +
                ", got an older one; update NVIDIA's driver");
  }

  // Returns null if the driver doesn't have the function at that version.
  void* Find(const char* name, int version) const {
    void* found = nullptr;
    const CUresult result = get_ != nullptr
                                ? get_(name, &found, version, CU_GET_PROC_ADDRESS_DEFAULT, nullptr)
                                : old_get_(name, &found, version, CU_GET_PROC_ADDRESS_DEFAULT);
    return result == CUDA_SUCCESS ? found : nullptr;
  }

  void* Need(const char* name, int version) const {
    void* found = Find(name, version);
    Require(found != nullptr, std::string("expected ") + name + " of CUDA " +
                                  std::to_string(version / 1000) + "." +
                                  std::to_string(version % 1000 / 10) + " in " + library_ +
                                  ", got none; update NVIDIA's driver");
    return found;
  }

 private:
  std::string library_;
  PFN_cuGetProcAddress_v12000 get_ = nullptr;
  PFN_cuGetProcAddress_v11030 old_get_ = nullptr;
};

std::string Advice(CUresult result) {
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return "free GPU memory, or use more ranks";
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
      return "make the GPU visible (CUDA_VISIBLE_DEVICES)";
    case CUDA_ERROR_NOT_PERMITTED:
    case CUDA_ERROR_NOT_SUPPORTED:
      return "this GPU, driver or container doesn't allow it";
    case CUDA_ERROR_NOT_INITIALIZED:
      return "this process was forked from one that had used CUDA; have processes spawned "
             "(VLLM_WORKER_MULTIPROC_METHOD=spawn)";
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
      return "this GPU's context is lost since an earlier kernel or copy failed; look for the "
             "first error in this rank's log, and restart the rank";
    default:
      return "";
  }
}

}  // namespace

std::shared_ptr<const CudaApi> CudaApi::Load(const std::string& library) {
  const Resolver resolver(library);
  auto api = std::make_shared<CudaApi>();
#define DWDP_NEED(name, version) \
  api->name = reinterpret_cast<decltype(api->name)>(resolver.Need(#name, version));
#define DWDP_FIND(name, version) \
  api->name = reinterpret_cast<decltype(api->name)>(resolver.Find(#name, version));
  DWDP_CUDA_SYMBOLS(DWDP_NEED)
  DWDP_OPTIONAL_CUDA_SYMBOLS(DWDP_FIND)
#undef DWDP_NEED
#undef DWDP_FIND
  api->Check(api->cuInit(0), "cuInit");
  return api;
}

std::string CudaApi::Describe(CUresult result, const std::string& what,
                              const std::string& advice) const {
  const char* name = nullptr;
  const char* text = nullptr;
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  const std::string& next = advice.empty() ? Advice(result) : advice;
  return what + " failed: " + (name ? name : "error " + std::to_string(result)) +
         (text ? std::string(" (") + text + ")" : "") + (next.empty() ? "" : "; ") + next;
}

void CudaApi::Check(CUresult result, const std::string& what, const std::string& advice) const {
  if (result == CUDA_SUCCESS) return;
  const std::string message = Describe(result, what, advice);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) throw OutOfResources(message);
  throw DriverError(message);
}

}  // namespace dwdp
