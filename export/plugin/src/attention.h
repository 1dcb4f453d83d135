// What one BilateralAttention node computes: its attributes, and the inputs that follow from them.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <string>

namespace bilateral {

inline constexpr const char* kOpName = "BilateralAttention";
inline constexpr const char* kOpNamespace = "ai.bilateral";
inline constexpr const char* kOpVersion = "1";
inline constexpr int32_t kMaxCoordinates = 3;

enum class RangeKernel : uint8_t { kDot = 0, kGaussian = 1 };
enum class SpatialKernel : uint8_t { kNone = 0, kGaussian = 1, kDot = 2 };

// The node's attributes.
struct Attention {
  float scale = 1.0F;
  RangeKernel range = RangeKernel::kDot;
  SpatialKernel spatial = SpatialKernel::kNone;
  int32_t queryPrefix = 0;
  int32_t keyPrefix = 0;
  bool causal = false;
};

inline constexpr int32_t kNumAttributes = 6;

// The names TensorRT's parser looks up on the node, in the order in which they are serialised.
const std::array<const char*, kNumAttributes>& attributeNames();

// Reads attributes handed over by the parser, or fields read back from a plan.
// Throws std::invalid_argument naming the attribute that is missing, unknown or out of range.
Attention attentionFromFields(const nvinfer1::PluginFieldCollection& fields);

// Owns what a PluginFieldCollection points to; its fields read back as the same attention.
class AttentionFields {
 public:
  explicit AttentionFields(const Attention& attention);
  AttentionFields(const AttentionFields&) = delete;
  AttentionFields& operator=(const AttentionFields&) = delete;
  AttentionFields(AttentionFields&&) = delete;
  AttentionFields& operator=(AttentionFields&&) = delete;
  ~AttentionFields() = default;

  [[nodiscard]] const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

 private:
  float scale_;
  std::string range_;
  std::string spatial_;
  int32_t queryPrefix_;
  int32_t keyPrefix_;
  int32_t causal_;
  std::array<nvinfer1::PluginField, kNumAttributes> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// Where each operand lies among the node's inputs; absent ones are left out of the node, so the
// spatial kernel and the number of inputs tell them apart. kAbsent where there is none.
struct Operands {
  static constexpr int32_t kAbsent = -1;
  static constexpr int32_t kQuery = 0;
  static constexpr int32_t kKey = 1;
  static constexpr int32_t kValue = 2;

  int32_t queryPositions = kAbsent;
  int32_t keyPositions = kAbsent;
  int32_t bandwidth = kAbsent;
  int32_t keyBias = kAbsent;
  int32_t count = 0;
};

// Throws std::invalid_argument when no arrangement of operands has `inputs` inputs.
Operands operandsOf(SpatialKernel spatial, int32_t inputs);

// The sizes of one call, all known.
struct Problem {
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
  int32_t batch = 0;
  int32_t heads = 0;
  int32_t queries = 0;
  int32_t keys = 0;
  int32_t headDim = 0;
  int32_t features = 0;  // coordinates C, or features P of the dot spatial kernel; 0 without one
};

// Checks the inputs' types and shapes against each other and the attributes. A dimension of -1 is
// not known yet and agrees with everything; the result then holds -1 too.
// Throws std::invalid_argument naming the operand and what it should be.
Problem problemOf(const Attention& attention, const Operands& operands,
                  const nvinfer1::PluginTensorDesc* inputs);

// True for float32, float16 and bfloat16.
bool isTokenType(nvinfer1::DataType type);

}  // namespace bilateral
