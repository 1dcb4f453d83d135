// Which kernels one call of the operator launches, with which arguments, in which order.
#pragma once

#include <cuda.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "attention.h"
#include "kernels.h"

namespace bilateral {

// The arguments of one launch by name. Each lies at the start of eight bytes; a kernel reads as
// many of them as its type has.
class Arguments {
 public:
  void set(Argument name, const void* pointer);
  void set(Argument name, int64_t number);
  void set(Argument name, int32_t number);
  void set(Argument name, float number);

  // Where the argument lies, as cuLaunchKernel wants it.
  [[nodiscard]] void* at(Argument name);

 private:
  template <typename T>
  void store(Argument name, T value);

  std::array<uint64_t, static_cast<size_t>(Argument::kCount)> slots_{};
};

struct Launch {
  const Kernel* kernel = nullptr;
  uint32_t grid = 0;
  Arguments arguments;
};

// Device pointers of one call.
struct Tensors {
  const void* const* inputs = nullptr;
  void* output = nullptr;
  void* workspace = nullptr;
};

struct Schedule {
  static constexpr int32_t kMaxLaunches = 5;
  // Filled with zeros before anything is launched; nullptr for nothing.
  void* zeros = nullptr;
  int32_t numZeros = 0;  // float32 values
  std::array<Launch, kMaxLaunches> launches;
  int32_t count = 0;
};

// Throws std::invalid_argument where the kernels cannot do what the node asks, for any GPU:
// a scale that is not positive, a head size or number of features that is not a multiple of 8 or is
// too large. Unknown sizes (-1) are taken to fit.
void requireSupported(const Attention& attention, const Operands& operands, const Problem& problem);

// Bytes of scratch memory that any of this library's GPUs needs for a problem of this size or less.
size_t workspaceBytes(const Attention& attention, const Operands& operands, const Problem& problem);

// Throws std::runtime_error naming the compute capability when there is no code for it.
Schedule makeSchedule(const Attention& attention, const Operands& operands, const Problem& problem,
                      const Tensors& tensors, int32_t computeCapability);

// Loads the kernels of `schedule` and puts their launches on `stream`.
// Throws std::runtime_error with the driver's reason.
void enqueueSchedule(Schedule& schedule, CUstream stream);

}  // namespace bilateral
