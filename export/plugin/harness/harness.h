// What TensorRT does with a plugin library, in C: load it, create the plugin through its creator,
// configure it, carry its fields over to a runtime plugin, and enqueue. No TensorRT is needed.
#pragma once

#include <cstddef>
#include <cstdint>

#define HARNESS_EXPORT extern "C" __attribute__((visibility("default")))

// The attributes of a node, as the parser hands them over.
struct HarnessNode {
  float scale;
  int32_t queryPrefix;
  int32_t keyPrefix;
  int32_t causal;
  const char* range;
  const char* spatial;
};

// An input or output. `type` is a TensorRT DataType: 0 float32, 1 float16, 7 bfloat16.
struct HarnessTensor {
  int64_t sizes[8];
  int32_t rank;
  int32_t type;
};

struct Harness;

// The node's plugin, built for `inputs` and configured, or nullptr. The library is loaded once and
// stays for the life of the process.
HARNESS_EXPORT Harness* harnessCreate(const char* library, const HarnessNode* node,
                                      const HarnessTensor* inputs, int32_t count);

// Scratch memory that enqueue needs.
HARNESS_EXPORT size_t harnessWorkspaceBytes(const Harness* harness);

// Puts the node on `stream` that many times; the host's nanoseconds for one, or -1 on failure.
// Every pointer is one of the device, 16-byte aligned.
HARNESS_EXPORT double harnessEnqueue(Harness* harness, const void* const* inputs, void* output,
                                     void* workspace, void* stream, int32_t repetitions);

HARNESS_EXPORT void harnessDestroy(Harness* harness);

// Why the last call of this thread failed.
HARNESS_EXPORT const char* harnessError();
