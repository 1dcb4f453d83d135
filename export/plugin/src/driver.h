// The few functions of the CUDA driver that a launch needs, found when the first launch happens:
// the library must load where there is no GPU and no driver.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

namespace bilateral {

class Driver {
 public:
  // The driver of this process. Throws std::runtime_error when libcuda.so.1 cannot be loaded or
  // lacks a function (the libraries API came with CUDA 12.0).
  static const Driver& instance();

  // 10 * major + minor of the device of the current context, such as 90.
  [[nodiscard]] int32_t computeCapability() const;

  // The kernel `name` of a cubin, for every context; loaded once per image and device, with its
  // shared memory limit raised to `sharedBytes`.
  [[nodiscard]] CUkernel kernel(const void* cubin, const char* name, uint32_t sharedBytes) const;

  // `count` 32-bit zeros on the device.
  void fillZeros(void* pointer, size_t count, CUstream stream) const;

  // A one-dimensional grid of `blocks`.
  void launch(CUkernel kernel, uint32_t blocks, uint32_t threads, uint32_t sharedBytes,
              CUstream stream, void** arguments) const;

 private:
  Driver();
  [[nodiscard]] CUdevice device() const;
  void check(CUresult result, const char* what) const;

  decltype(&cuCtxGetDevice) ctxGetDevice_ = nullptr;
  decltype(&cuDeviceGetAttribute) deviceGetAttribute_ = nullptr;
  decltype(&cuGetErrorString) getErrorString_ = nullptr;
  decltype(&cuKernelSetAttribute) kernelSetAttribute_ = nullptr;
  decltype(&cuLaunchKernel) launchKernel_ = nullptr;
  decltype(&cuLibraryGetKernel) libraryGetKernel_ = nullptr;
  decltype(&cuLibraryLoadData) libraryLoadData_ = nullptr;
  decltype(&cuMemsetD32Async) memsetD32Async_ = nullptr;
};

}  // namespace bilateral
