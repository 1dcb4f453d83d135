// The record kept by the stand-in for libcuda.so.1.
#pragma once

#include <cstddef>
#include <cstdint>

inline constexpr int32_t kMaxLaunches = 16;
inline constexpr int32_t kMaxArguments = 64;

struct FakeLaunch {
  char kernel[256];
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t sharedBytes;
  void* stream;
  // The arguments' own bytes, as a 64-bit number each; how many and how wide they are is
  // `argumentBytes` of the record.
  uint64_t arguments[kMaxArguments];
};

struct FakeCuda {
  // What the test sets.
  bool hasContext;
  int computeCapabilityMajor;
  int computeCapabilityMinor;
  int failLaunchWith;  // a CUresult
  int32_t (*argumentBytes)(const char* kernel, uint8_t* bytes);  // returns how many there are
  // What the test reads.
  int32_t librariesLoaded;
  const void* lastImage;
  int32_t sharedBytesAllowed;
  int32_t launches;
  FakeLaunch launch[kMaxLaunches];
};

using FakeCudaState = FakeCuda* (*)();
