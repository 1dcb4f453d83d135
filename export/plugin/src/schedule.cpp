#include "schedule.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "driver.h"

namespace bilateral {
namespace {

using nvinfer1::DataType;

constexpr size_t kAlignment = 256;
constexpr int32_t kVector = 8;  // elements of the 16-byte accesses, in 16-bit types
constexpr int64_t kFeaturesPerBlock = 1024;
// From this many keys on it is worth asking which tiles a Gaussian spatial kernel makes negligible.
constexpr int32_t kKeysWorthPlanning = 4096;

int64_t ceilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

size_t bytesOf(DataType type) { return type == DataType::kFLOAT ? 4 : 2; }

// The share of a row's weights that may be left out: what the type cannot show.
float negligibleShare(DataType type) {
  switch (type) {
    case DataType::kHALF:
      return 0x1p-13F;
    case DataType::kBF16:
      return 0x1p-10F;
    default:
      return 0x1p-26F;
  }
}

const char* nameOf(DataType type) {
  switch (type) {
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    default:
      return "float32";
  }
}

float largestOf(DataType type) { return type == DataType::kHALF ? 65504.0F : 3.38e38F; }

// The kernels that one call needs on one GPU; nullptr where a step is left out.
struct Kernels {
  bool zeroTerm = false;  // the attention kernel reads key terms, and there are none
  const Kernel* features = nullptr;
  const Kernel* keyTiles = nullptr;
  const Kernel* plan = nullptr;
  const Kernel* attention = nullptr;
};

// Scratch memory: where each buffer begins, and what they take together.
struct Layout {
  size_t queryFeatures = 0;
  size_t keyFeatures = 0;
  size_t keyTerm = 0;
  size_t tileNorm = 0;
  size_t tileTerm = 0;
  size_t tileBoxes = 0;
  size_t tileRanges = 0;
  size_t total = 0;

  size_t take(size_t bytes) {
    const size_t begin = total;
    total += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  }
};

Kernels chooseKernels(const Attention& attention, const Operands& operands, const Problem& problem,
                      int32_t computeCapability) {
  const bool gaussian = attention.range == RangeKernel::kGaussian;
  const bool placed = attention.spatial == SpatialKernel::kGaussian;
  KernelQuery query;
  query.computeCapability = computeCapability;
  query.type = problem.type;
  query.spatial = attention.spatial;
  query.keyTerm = gaussian || operands.keyBias != Operands::kAbsent;
  query.headDim = problem.headDim;
  query.coordinates = placed ? problem.features : 0;
  query.features = attention.spatial == SpatialKernel::kDot ? problem.features : 0;

  Kernels kernels;
  kernels.attention = findKernel(query);
  if (kernels.attention == nullptr && !query.keyTerm) {
    query.keyTerm = true;
    kernels.attention = findKernel(query);
    kernels.zeroTerm = true;
  }
  if (kernels.attention == nullptr) {
    return {};
  }
  if (placed && problem.keys >= kKeysWorthPlanning) {
    query.role = Role::kPlan;
    query.blockM = kernels.attention->blockM;
    query.blockN = kernels.attention->blockN;
    kernels.plan = findKernel(query);
  }
  if (gaussian || kernels.plan != nullptr) {
    query.role = Role::kKeyTiles;
    query.blockM = 0;  // its tiles are of keys, and matter only to the plan
    query.blockN = kernels.plan != nullptr ? kernels.attention->blockN : 0;
    kernels.keyTiles = findKernel(query);
    kernels.zeroTerm = false;
    if (kernels.keyTiles == nullptr) {
      return {};
    }
  }
  if (attention.spatial == SpatialKernel::kDot) {
    query.role = Role::kFeatures;
    query.blockM = query.blockN = query.headDim = 0;
    kernels.features = findKernel(query);
    if (kernels.features == nullptr) {
      return {};
    }
  }
  return kernels;
}

Layout layOut(const Kernels& kernels, const Problem& problem) {
  const auto sequences = static_cast<size_t>(problem.batch) * static_cast<size_t>(problem.heads);
  Layout layout;
  if (kernels.features != nullptr) {
    const size_t row = static_cast<size_t>(problem.heads) * static_cast<size_t>(problem.features) *
                       bytesOf(problem.type);
    layout.queryFeatures = layout.take(row * static_cast<size_t>(problem.queries));
    layout.keyFeatures = layout.take(row * static_cast<size_t>(problem.keys));
  }
  if (kernels.zeroTerm) {
    layout.keyTerm = layout.take(static_cast<size_t>(problem.keys) * sizeof(float));
  }
  if (kernels.keyTiles != nullptr) {
    layout.keyTerm = layout.take(sequences * static_cast<size_t>(problem.keys) * sizeof(float));
  }
  if (kernels.plan != nullptr) {
    const auto tiles = static_cast<size_t>(ceilDiv(problem.keys, kernels.attention->blockN));
    const auto rows = static_cast<size_t>(ceilDiv(problem.queries, kernels.attention->blockM));
    layout.tileNorm = layout.take(sequences * tiles * sizeof(float));
    layout.tileTerm = layout.take(sequences * tiles * sizeof(float));
    layout.tileBoxes =
        layout.take(tiles * 2 * static_cast<size_t>(problem.features) * sizeof(float));
    layout.tileRanges = layout.take(sequences * rows * 2 * sizeof(int32_t));
  }
  return layout;
}

uint32_t gridOf(int64_t blocks) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("the tensors are too large for one launch");
  }
  return static_cast<uint32_t>(blocks);
}

// Sizes, strides and attributes; pointers are set by who knows them.
Arguments commonArguments(const Attention& attention, const Problem& problem) {
  const int64_t headDim = problem.headDim;
  const int64_t queryHead = problem.queries * headDim;
  const int64_t keyHead = problem.keys * headDim;
  Arguments arguments;
  arguments.set(Argument::stride_qb, problem.heads * queryHead);
  arguments.set(Argument::stride_qh, queryHead);
  arguments.set(Argument::stride_qn, problem.headDim);
  arguments.set(Argument::stride_kb, problem.heads * keyHead);
  arguments.set(Argument::stride_kh, keyHead);
  arguments.set(Argument::stride_kn, problem.headDim);
  arguments.set(Argument::stride_vb, problem.heads * keyHead);
  arguments.set(Argument::stride_vh, keyHead);
  arguments.set(Argument::stride_vn, problem.headDim);
  arguments.set(Argument::stride_ob, problem.heads * queryHead);
  arguments.set(Argument::stride_oh, queryHead);
  arguments.set(Argument::stride_on, problem.headDim);
  arguments.set(Argument::stride_bias, static_cast<int64_t>(problem.keys));
  arguments.set(Argument::heads, problem.heads);
  arguments.set(Argument::n_query, problem.queries);
  arguments.set(Argument::n_key, problem.keys);
  arguments.set(Argument::head_dim, problem.headDim);
  arguments.set(Argument::n_features, problem.features);
  arguments.set(Argument::query_prefix, attention.queryPrefix);
  arguments.set(Argument::key_prefix, attention.keyPrefix);
  arguments.set(Argument::diagonal,
                attention.causal ? problem.keys - problem.queries : problem.keys);
  arguments.set(Argument::scale, attention.scale);
  return arguments;
}

class Scheduler {
 public:
  Scheduler(const Attention& attention, const Operands& operands, const Problem& problem,
            const Tensors& tensors, const Kernels& kernels)
      : attention_(attention),
        operands_(operands),
        problem_(problem),
        tensors_(tensors),
        kernels_(kernels),
        layout_(layOut(kernels, problem)),
        common_(commonArguments(attention, problem)) {}

  Schedule make() {
    setTensors();
    if (kernels_.features != nullptr) {
      roundFeatures(operands_.queryPositions, layout_.queryFeatures, problem_.queries,
                    attention_.queryPrefix);
      roundFeatures(operands_.keyPositions, layout_.keyFeatures, problem_.keys,
                    attention_.keyPrefix);
      common_.set(Argument::query_positions, scratch(layout_.queryFeatures));
      common_.set(Argument::key_positions, scratch(layout_.keyFeatures));
    }
    if (kernels_.zeroTerm) {
      // One row of zeros for every batch and head: both strides are 0 already.
      schedule_.zeros = scratch(layout_.keyTerm);
      schedule_.numZeros = problem_.keys;
      common_.set(Argument::key_term, schedule_.zeros);
    }
    if (kernels_.keyTiles != nullptr) {
      computeKeyTiles();
    }
    if (kernels_.plan != nullptr) {
      planTiles();
    }
    const int64_t rows = ceilDiv(problem_.queries, kernels_.attention->blockM);
    add(kernels_.attention, rows * sequences(), common_);
    return schedule_;
  }

 private:
  [[nodiscard]] int64_t sequences() const {
    return static_cast<int64_t>(problem_.batch) * problem_.heads;
  }

  [[nodiscard]] void* scratch(size_t offset) const {
    return static_cast<char*>(tensors_.workspace) + offset;
  }

  [[nodiscard]] const void* input(int32_t operand) const {
    return operand == Operands::kAbsent ? nullptr : tensors_.inputs[operand];
  }

  void add(const Kernel* kernel, int64_t blocks, const Arguments& arguments) {
    schedule_.launches[static_cast<size_t>(schedule_.count++)] = {kernel, gridOf(blocks),
                                                                  arguments};
  }

  void setTensors() {
    const void* bias = input(operands_.keyBias);
    common_.set(Argument::query, input(Operands::kQuery));
    common_.set(Argument::key, input(Operands::kKey));
    common_.set(Argument::value, input(Operands::kValue));
    common_.set(Argument::output, tensors_.output);
    common_.set(Argument::query_positions, input(operands_.queryPositions));
    common_.set(Argument::key_positions, input(operands_.keyPositions));
    common_.set(Argument::bandwidth, input(operands_.bandwidth));
    common_.set(Argument::key_bias, bias);
    common_.set(Argument::has_bias, bias != nullptr ? 1 : 0);
    // With the dot range kernel the key terms are the bias itself: the same for every head.
    common_.set(Argument::key_term, bias);
    common_.set(Argument::stride_tb, bias != nullptr ? int64_t{problem_.keys} : int64_t{0});
    common_.set(Argument::stride_th, int64_t{0});
  }

  void roundFeatures(int32_t operand, size_t target, int32_t tokens, int32_t prefix) {
    Arguments arguments = common_;
    arguments.set(Argument::source, input(operand));
    arguments.set(Argument::target, scratch(target));
    arguments.set(Argument::n_tokens, tokens);
    arguments.set(Argument::prefix, prefix);
    arguments.set(Argument::largest, largestOf(problem_.type));
    const int64_t elements = int64_t{problem_.heads} * tokens * problem_.features;
    add(kernels_.features, ceilDiv(elements, kFeaturesPerBlock), arguments);
  }

  void computeKeyTiles() {
    const bool bounds = kernels_.plan != nullptr;
    common_.set(Argument::key_term, scratch(layout_.keyTerm));
    common_.set(Argument::stride_tb, int64_t{problem_.heads} * problem_.keys);
    common_.set(Argument::stride_th, int64_t{problem_.keys});
    common_.set(Argument::gaussian_range, attention_.range == RangeKernel::kGaussian ? 1 : 0);
    common_.set(Argument::coordinates, bounds ? problem_.features : 0);
    if (bounds) {
      common_.set(Argument::tile_norm, scratch(layout_.tileNorm));
      common_.set(Argument::tile_term, scratch(layout_.tileTerm));
      common_.set(Argument::tile_boxes, scratch(layout_.tileBoxes));
    }
    add(kernels_.keyTiles, ceilDiv(problem_.keys, kernels_.keyTiles->blockN) * sequences(),
        common_);
  }

  void planTiles() {
    common_.set(Argument::tile_ranges, scratch(layout_.tileRanges));
    common_.set(Argument::has_ranges, 1);
    common_.set(Argument::budget, negligibleShare(problem_.type));
    add(kernels_.plan, ceilDiv(problem_.queries, kernels_.plan->blockM) * sequences(), common_);
  }

  Attention attention_;
  Operands operands_;
  Problem problem_;
  Tensors tensors_;
  Kernels kernels_;
  Layout layout_;
  Arguments common_;
  Schedule schedule_;
};

std::string listed(const std::vector<int32_t>& capabilities) {
  std::string text;
  for (const int32_t capability : capabilities) {
    text += (text.empty() ? "sm_" : ", sm_") + std::to_string(capability);
  }
  return text.empty() ? "no GPU" : text;
}

void requireMultiple(const char* what, int32_t size) {
  if (size >= 0 && size % kVector != 0) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(size) +
                                "; the kernel needs a multiple of 8");
  }
}

}  // namespace

template <typename T>
void Arguments::store(Argument name, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t& slot = slots_[static_cast<size_t>(name)];
  slot = 0;
  std::memcpy(&slot, &value, sizeof(T));
}

void Arguments::set(Argument name, const void* pointer) {
  store(name, reinterpret_cast<uintptr_t>(pointer));
}
void Arguments::set(Argument name, int64_t number) { store(name, number); }
void Arguments::set(Argument name, int32_t number) { store(name, number); }
void Arguments::set(Argument name, float number) { store(name, number); }

void* Arguments::at(Argument name) { return &slots_[static_cast<size_t>(name)]; }

void requireSupported(const Attention& attention, const Operands& operands,
                      const Problem& problem) {
  if (!(attention.scale > 0.0F)) {
    throw std::invalid_argument("scale is " + std::to_string(attention.scale) +
                                "; the kernel needs a positive one");
  }
  requireMultiple("the head size D", problem.headDim);
  if (attention.spatial == SpatialKernel::kDot) {
    requireMultiple("the number of features P", problem.features);
  }
  if (problem.headDim < 0 || problem.features < 0) {
    return;
  }
  for (const int32_t capability : computeCapabilities()) {
    if (chooseKernels(attention, operands, problem, capability).attention != nullptr) {
      return;
    }
  }
  throw std::invalid_argument(std::string("no kernel for ") + nameOf(problem.type) +
                              ", head size " + std::to_string(problem.headDim) + " and " +
                              std::to_string(problem.features) + " position features, on any of " +
                              listed(computeCapabilities()));
}

size_t workspaceBytes(const Attention& attention, const Operands& operands,
                      const Problem& problem) {
  size_t most = 0;
  for (const int32_t capability : computeCapabilities()) {
    const Kernels kernels = chooseKernels(attention, operands, problem, capability);
    if (kernels.attention != nullptr) {
      most = std::max(most, layOut(kernels, problem).total);
    }
  }
  return most;
}

Schedule makeSchedule(const Attention& attention, const Operands& operands, const Problem& problem,
                      const Tensors& tensors, int32_t computeCapability) {
  requireSupported(attention, operands, problem);
  const Kernels kernels = chooseKernels(attention, operands, problem, computeCapability);
  if (kernels.attention == nullptr) {
    throw std::runtime_error("this library has no code for a GPU of compute capability sm_" +
                             std::to_string(computeCapability) + "; it has code for " +
                             listed(computeCapabilities()));
  }
  return Scheduler(attention, operands, problem, tensors, kernels).make();
}

void enqueueSchedule(Schedule& schedule, CUstream stream) {
  const Driver& driver = Driver::instance();
  if (schedule.zeros != nullptr) {
    driver.fillZeros(schedule.zeros, static_cast<size_t>(schedule.numZeros), stream);
  }
  for (int32_t i = 0; i < schedule.count; ++i) {
    Launch& launch = schedule.launches[static_cast<size_t>(i)];
    const Kernel& kernel = *launch.kernel;
    std::array<void*, static_cast<size_t>(Argument::kCount) + 1> pointers{};
    for (int32_t j = 0; j < kernel.numArguments; ++j) {
      pointers[static_cast<size_t>(j)] = launch.arguments.at(kernel.arguments[j]);
    }
    driver.launch(driver.kernel(kernel.cubin, kernel.symbol, kernel.sharedBytes), launch.grid,
                  kernel.threads, kernel.sharedBytes, stream, pointers.data());
  }
}

}  // namespace bilateral
