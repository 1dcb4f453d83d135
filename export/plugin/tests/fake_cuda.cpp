// A stand-in for libcuda.so.1 on machines without a GPU: it records what would be launched, so that
// a test can drive the plugin's enqueue up to the driver's door.
#include "fake_cuda.h"

#include <cuda.h>

#include <cstring>
#include <deque>
#include <string>

namespace {

FakeCuda& state() {
  static FakeCuda fake{};
  return fake;
}

// What a CUkernel points to here.
struct FakeKernel {
  std::string name;
  const void* image;
};

std::deque<FakeKernel>& kernels() {
  static std::deque<FakeKernel> all;
  return all;
}

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

FAKE FakeCuda* fakeCuda() { return &state(); }

FAKE CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return state().hasContext ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

FAKE CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice /*device*/) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
               ? state().computeCapabilityMajor
               : state().computeCapabilityMinor;
  return CUDA_SUCCESS;
}

FAKE CUresult cuGetErrorString(CUresult /*error*/, const char** text) {
  *text = "an error of the fake driver";
  return CUDA_SUCCESS;
}

FAKE CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option* /*options*/,
                                void** /*values*/, unsigned int /*count*/,
                                CUlibraryOption* /*libraryOptions*/, void** /*libraryValues*/,
                                unsigned int /*libraryCount*/) {
  state().librariesLoaded++;
  state().lastImage = code;
  *library = reinterpret_cast<CUlibrary>(const_cast<void*>(code));
  return std::memcmp(code,
                     "\x7f"
                     "ELF",
                     4) == 0
             ? CUDA_SUCCESS
             : CUDA_ERROR_INVALID_IMAGE;
}

FAKE CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  kernels().push_back({name, library});
  *kernel = reinterpret_cast<CUkernel>(&kernels().back());
  return CUDA_SUCCESS;
}

FAKE CUresult cuKernelSetAttribute(CUfunction_attribute /*attribute*/, int value,
                                   CUkernel /*kernel*/, CUdevice /*device*/) {
  state().sharedBytesAllowed = value;
  return CUDA_SUCCESS;
}

FAKE CUresult cuMemsetD32Async(CUdeviceptr pointer, unsigned int value, size_t count,
                               CUstream /*stream*/) {
  state().cleared = reinterpret_cast<void*>(pointer);
  state().clearedCount = static_cast<int32_t>(count);
  return value == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

FAKE CUresult cuLaunchKernel(CUfunction function, unsigned int gridX, unsigned int gridY,
                             unsigned int gridZ, unsigned int blockX, unsigned int blockY,
                             unsigned int blockZ, unsigned int sharedBytes, CUstream stream,
                             void** arguments, void** /*extra*/) {
  if (state().failLaunchWith != 0) {
    return static_cast<CUresult>(state().failLaunchWith);
  }
  if (state().launches >= kMaxLaunches) {
    state().launches++;
    return CUDA_SUCCESS;
  }
  FakeLaunch& launch = state().launch[state().launches++];
  const auto& kernel = *reinterpret_cast<const FakeKernel*>(function);
  std::strncpy(launch.kernel, kernel.name.c_str(), sizeof(launch.kernel) - 1);
  launch.image = kernel.image;
  launch.grid[0] = gridX;
  launch.grid[1] = gridY;
  launch.grid[2] = gridZ;
  launch.block[0] = blockX;
  launch.block[1] = blockY;
  launch.block[2] = blockZ;
  launch.sharedBytes = sharedBytes;
  launch.stream = stream;
  launch.argumentCount = 0;
  while (launch.argumentCount < kMaxArguments && arguments[launch.argumentCount] != nullptr) {
    std::memcpy(&launch.arguments[launch.argumentCount], arguments[launch.argumentCount],
                sizeof(uint64_t));
    launch.argumentCount++;
  }
  return CUDA_SUCCESS;
}
