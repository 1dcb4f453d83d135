#include "driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

namespace bilateral {
namespace {

constexpr uint32_t kSharedWithoutAsking = 48U * 1024U;

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw std::runtime_error("the NVIDIA driver is too old: it has no " + std::string(name) +
                             " (CUDA 12.0 or later is needed)");
  }
}

}  // namespace

const Driver& Driver::instance() {
  static const Driver driver;
  return driver;
}

Driver::Driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw std::runtime_error("no NVIDIA driver: libcuda.so.1 cannot be loaded");
  }
  find(library, "cuCtxGetDevice", ctxGetDevice_);
  find(library, "cuDeviceGetAttribute", deviceGetAttribute_);
  find(library, "cuGetErrorString", getErrorString_);
  find(library, "cuKernelSetAttribute", kernelSetAttribute_);
  find(library, "cuLaunchKernel", launchKernel_);
  find(library, "cuLibraryGetKernel", libraryGetKernel_);
  find(library, "cuLibraryLoadData", libraryLoadData_);
  find(library, "cuMemsetD32Async", memsetD32Async_);
}

void Driver::check(CUresult result, const char* what) const {
  if (result == CUDA_SUCCESS) {
    return;
  }
  const char* reason = nullptr;
  getErrorString_(result, &reason);
  throw std::runtime_error(std::string(what) + ": " +
                           (reason != nullptr ? reason : "unknown CUDA error") + " (" +
                           std::to_string(static_cast<int>(result)) + ")");
}

CUdevice Driver::device() const {
  CUdevice device = 0;
  check(ctxGetDevice_(&device), "no current CUDA device");
  return device;
}

int32_t Driver::computeCapability() const {
  const CUdevice current = device();
  int major = 0;
  int minor = 0;
  check(deviceGetAttribute_(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, current),
        "compute capability");
  check(deviceGetAttribute_(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, current),
        "compute capability");
  return (10 * major) + minor;
}

CUkernel Driver::kernel(const void* cubin, const char* name, uint32_t sharedBytes) const {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, CUdevice>, CUkernel> loaded;

  const CUdevice current = device();
  const std::scoped_lock lock(mutex);
  const auto key = std::make_tuple(cubin, current);
  const auto found = loaded.find(key);
  if (found != loaded.end()) {
    return found->second;
  }
  CUlibrary library = nullptr;
  check(libraryLoadData_(&library, cubin, nullptr, nullptr, 0, nullptr, nullptr, 0),
        "loading the kernel");
  CUkernel kernel = nullptr;
  check(libraryGetKernel_(&kernel, library, name), name);
  if (sharedBytes > kSharedWithoutAsking) {
    check(kernelSetAttribute_(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                              static_cast<int>(sharedBytes), kernel, current),
          "asking for shared memory");
  }
  loaded.emplace(key, kernel);
  return kernel;
}

void Driver::fillZeros(void* pointer, size_t count, CUstream stream) const {
  check(memsetD32Async_(reinterpret_cast<CUdeviceptr>(pointer), 0, count, stream),
        "clearing scratch memory");
}

void Driver::launch(CUkernel kernel, uint32_t blocks, uint32_t threads, uint32_t sharedBytes,
                    CUstream stream, void** arguments) const {
  // The driver accepts a CUkernel where it expects a CUfunction (cuLaunchKernel's documentation).
  check(launchKernel_(reinterpret_cast<CUfunction>(kernel), blocks, 1, 1, threads, 1, 1,
                      sharedBytes, stream, arguments, nullptr),
        "launching the kernel");
}

}  // namespace bilateral
