// The record kept by the stand-in for libcuda.so.1.
#pragma once

#include <cstddef>
#include <cstdint>

inline constexpr int32_t kMaxLaunches = 16;
inline constexpr int32_t kMaxArguments = 64;

struct FakeLaunch {
  char kernel[256];
  const void* image;  // the cubin it comes from
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t sharedBytes;
  void* stream;
  // Eight bytes from each argument on: the plugin keeps every argument in a slot of that size.
  uint64_t arguments[kMaxArguments];
  int32_t argumentCount;
};

struct FakeCuda {
  // What the test sets.
  bool hasContext;
  int computeCapabilityMajor;
  int computeCapabilityMinor;
  int failLaunchWith;  // a CUresult
  // What the test reads.
  int32_t librariesLoaded;
  const void* lastImage;
  int32_t sharedBytesAllowed;
  const void* cleared;
  int32_t clearedCount;
  int32_t launches;  // since the last reset; only the first kMaxLaunches are kept
  FakeLaunch launch[kMaxLaunches];
};

using FakeCudaState = FakeCuda* (*)();
