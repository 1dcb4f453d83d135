#include "attention.h"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace bilateral {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// Positions in `attributeNames`.
enum Attribute : uint8_t {  // NOLINT(cppcoreguidelines-use-enum-class): these are indices
  kScale,
  kRangeKernel,
  kSpatialKernel,
  kQueryPrefix,
  kKeyPrefix,
  kCausal,
};

[[noreturn]] void reject(const std::string& problem) { throw std::invalid_argument(problem); }

const PluginField& fieldNamed(const PluginFieldCollection& collection, const char* name) {
  for (int32_t i = 0; i < collection.nbFields; ++i) {
    const PluginField& field = collection.fields[i];
    if (field.name != nullptr && std::strcmp(field.name, name) == 0) {
      if (field.data == nullptr || field.length < 1) {
        reject("attribute " + std::string(name) + " is empty");
      }
      return field;
    }
  }
  reject("attribute " + std::string(name) + " is missing");
}

template <typename T>
T read(const PluginField& field) {
  T value;
  std::memcpy(&value, field.data, sizeof(T));  // TensorRT does not promise alignment
  return value;
}

float floatField(const PluginFieldCollection& collection, const char* name) {
  const PluginField& field = fieldNamed(collection, name);
  if (field.type == PluginFieldType::kFLOAT32) {
    return read<float>(field);
  }
  if (field.type == PluginFieldType::kFLOAT64) {
    return static_cast<float>(read<double>(field));
  }
  reject("attribute " + std::string(name) + " is not a float");
}

// Within [0, limit].
int32_t intField(const PluginFieldCollection& collection, const char* name, int64_t limit) {
  const PluginField& field = fieldNamed(collection, name);
  int64_t value = -1;
  if (field.type == PluginFieldType::kINT32) {
    value = read<int32_t>(field);
  } else if (field.type == PluginFieldType::kINT64) {
    value = read<int64_t>(field);
  } else {
    reject("attribute " + std::string(name) + " is not an integer");
  }
  if (value < 0 || value > limit) {
    reject("attribute " + std::string(name) + " is " + std::to_string(value) + ", not in 0.." +
           std::to_string(limit));
  }
  return static_cast<int32_t>(value);
}

template <typename Kernel>
struct Named {
  const char* name;
  Kernel kernel;
};

constexpr std::array<Named<RangeKernel>, 2> kRangeKernels{
    {{"dot", RangeKernel::kDot}, {"gaussian", RangeKernel::kGaussian}}};
constexpr std::array<Named<SpatialKernel>, 3> kSpatialKernels{
    {{"none", SpatialKernel::kNone},
     {"gaussian", SpatialKernel::kGaussian},
     {"dot", SpatialKernel::kDot}}};

template <typename Kernel, size_t size>
Kernel kernelField(const PluginFieldCollection& collection, const char* name,
                   const std::array<Named<Kernel>, size>& known) {
  const PluginField& field = fieldNamed(collection, name);
  if (field.type != PluginFieldType::kCHAR) {
    reject("attribute " + std::string(name) + " is not a string");
  }
  // The length counts the terminating zero in some versions and not in others.
  std::string_view value(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  value = value.substr(0, value.find('\0'));
  for (const Named<Kernel>& candidate : known) {
    if (value == candidate.name) {
      return candidate.kernel;
    }
  }
  reject("attribute " + std::string(name) + " has the unknown value '" + std::string(value) + "'");
}

template <typename Kernel, size_t size>
const char* nameOf(Kernel kernel, const std::array<Named<Kernel>, size>& known) {
  for (const Named<Kernel>& candidate : known) {
    if (candidate.kernel == kernel) {
      return candidate.name;
    }
  }
  reject("unknown kernel");
}

PluginField stringField(const char* name, const std::string& value) {
  return {name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size())};
}

int32_t size(const Dims& dims, int32_t axis) {
  const int64_t extent = dims.d[axis];
  if (extent > std::numeric_limits<int32_t>::max()) {
    reject("a dimension of " + std::to_string(extent) + " is too large");
  }
  return static_cast<int32_t>(extent);
}

std::string shapeText(const Dims& dims) {
  std::string text = "[";
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(dims.d[axis]);
  }
  return text + ']';
}

// A dimension that an operand must have, under the name it has in the op's documentation. Sizes
// start unknown (-1); the first operand that knows one sets it for those that follow.
using Axis = std::pair<const char*, int32_t*>;

void require(const char* operand, const Dims& dims, std::initializer_list<Axis> axes) {
  std::string expected = "[";
  for (const Axis& axis : axes) {
    const std::string text = *axis.second < 0 ? axis.first : std::to_string(*axis.second);
    expected += (expected.size() > 1 ? ", " : "") + text;
  }
  expected += ']';
  bool agrees = dims.nbDims == static_cast<int32_t>(axes.size());
  int32_t position = 0;
  for (const Axis& axis : axes) {
    if (!agrees) {
      break;
    }
    const int32_t extent = size(dims, position++);
    if (*axis.second < 0) {
      *axis.second = extent;
    }
    agrees = extent < 0 || extent == *axis.second;
  }
  if (!agrees) {
    reject(std::string(operand) + " has shape " + shapeText(dims) + " where " + expected +
           " is expected");
  }
}

void requireFloat(const char* operand, DataType type) {
  if (type != DataType::kFLOAT) {
    reject(std::string(operand) + " must be float32");
  }
}

void requirePrefix(const char* name, int32_t prefix, int32_t tokens) {
  if (tokens >= 0 && prefix > tokens) {
    reject(std::string(name) + " is " + std::to_string(prefix) + " but there are only " +
           std::to_string(tokens) + " tokens");
  }
}

}  // namespace

const std::array<const char*, kNumAttributes>& attributeNames() {
  static constexpr std::array<const char*, kNumAttributes> names{
      "scale", "range_kernel", "spatial_kernel", "query_prefix", "key_prefix", "causal"};
  return names;
}

Attention attentionFromFields(const PluginFieldCollection& fields) {
  const auto& names = attributeNames();
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  Attention attention;
  attention.scale = floatField(fields, names[kScale]);
  if (!std::isfinite(attention.scale)) {
    reject("attribute scale is not finite");
  }
  attention.range = kernelField(fields, names[kRangeKernel], kRangeKernels);
  attention.spatial = kernelField(fields, names[kSpatialKernel], kSpatialKernels);
  attention.queryPrefix = intField(fields, names[kQueryPrefix], kLargest);
  attention.keyPrefix = intField(fields, names[kKeyPrefix], kLargest);
  attention.causal = intField(fields, names[kCausal], 1) != 0;
  return attention;
}

AttentionFields::AttentionFields(const Attention& attention)
    : scale_(attention.scale),
      range_(nameOf(attention.range, kRangeKernels)),
      spatial_(nameOf(attention.spatial, kSpatialKernels)),
      queryPrefix_(attention.queryPrefix),
      keyPrefix_(attention.keyPrefix),
      causal_(attention.causal ? 1 : 0) {
  const auto& names = attributeNames();
  fields_[kScale] = {names[kScale], &scale_, PluginFieldType::kFLOAT32, 1};
  fields_[kRangeKernel] = stringField(names[kRangeKernel], range_);
  fields_[kSpatialKernel] = stringField(names[kSpatialKernel], spatial_);
  fields_[kQueryPrefix] = {names[kQueryPrefix], &queryPrefix_, PluginFieldType::kINT32, 1};
  fields_[kKeyPrefix] = {names[kKeyPrefix], &keyPrefix_, PluginFieldType::kINT32, 1};
  fields_[kCausal] = {names[kCausal], &causal_, PluginFieldType::kINT32, 1};
  collection_ = {kNumAttributes, fields_.data()};
}

Operands operandsOf(SpatialKernel spatial, int32_t inputs) {
  Operands operands;
  int32_t next = Operands::kValue + 1;
  if (spatial != SpatialKernel::kNone) {
    operands.queryPositions = next++;
    operands.keyPositions = next++;
  }
  if (spatial == SpatialKernel::kGaussian) {
    operands.bandwidth = next++;
  }
  if (inputs == next + 1) {
    operands.keyBias = next++;
  }
  if (inputs != next) {
    reject("spatial_kernel " + std::string(nameOf(spatial, kSpatialKernels)) + " takes " +
           std::to_string(next) + " inputs, or one more with key_bias, not " +
           std::to_string(inputs));
  }
  operands.count = inputs;
  return operands;
}

bool isTokenType(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

Problem problemOf(const Attention& attention, const Operands& operands,
                  const nvinfer1::PluginTensorDesc* inputs) {
  const auto& query = inputs[Operands::kQuery];
  const auto& key = inputs[Operands::kKey];
  const auto& value = inputs[Operands::kValue];
  if (!isTokenType(query.type)) {
    reject("query must be float32, float16 or bfloat16");
  }
  if (key.type != query.type || value.type != query.type) {
    reject("query, key and value must have one type");
  }
  Problem problem{query.type, -1, -1, -1, -1, -1, 0};
  const Axis batch{"B", &problem.batch};
  const Axis heads{"H", &problem.heads};
  const Axis queries{"Nq", &problem.queries};
  const Axis keys{"Nk", &problem.keys};
  const Axis headDim{"D", &problem.headDim};
  require("query", query.dims, {batch, heads, queries, headDim});
  require("key", key.dims, {batch, heads, keys, headDim});
  require("value", value.dims, {batch, heads, keys, headDim});

  if (attention.spatial != SpatialKernel::kNone) {
    problem.features = -1;
    const auto& queryPositions = inputs[operands.queryPositions];
    const auto& keyPositions = inputs[operands.keyPositions];
    requireFloat("query_positions", queryPositions.type);
    requireFloat("key_positions", keyPositions.type);
    if (attention.spatial == SpatialKernel::kGaussian) {
      const Axis coordinates{"C", &problem.features};
      require("query_positions", queryPositions.dims, {queries, coordinates});
      require("key_positions", keyPositions.dims, {keys, coordinates});
      if (problem.features == 0 || problem.features > kMaxCoordinates) {
        reject("positions have " + std::to_string(problem.features) + " coordinates, not 1 to 3");
      }
      const auto& bandwidth = inputs[operands.bandwidth];
      requireFloat("bandwidth", bandwidth.type);
      require("bandwidth", bandwidth.dims, {heads});
    } else {
      const Axis features{"P", &problem.features};
      require("query_positions", queryPositions.dims, {heads, queries, features});
      require("key_positions", keyPositions.dims, {heads, keys, features});
    }
  }
  if (operands.keyBias != Operands::kAbsent) {
    requireFloat("key_bias", inputs[operands.keyBias].type);
    require("key_bias", inputs[operands.keyBias].dims, {batch, keys});
  }
  requirePrefix("query_prefix", attention.queryPrefix, problem.queries);
  requirePrefix("key_prefix", attention.keyPrefix, problem.keys);
  return problem;
}

}  // namespace bilateral
