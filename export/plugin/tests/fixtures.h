// What the cases share: the plugin made from attributes, its three interfaces, tensors of a shape,
// and a logger that keeps the last message.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "attention.h"
#include "check.h"
#include "kernels.h"
#include "schedule.h"

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" const char* bilateralPluginContents();

using bilateral::Argument;
using bilateral::Attention;
using bilateral::Operands;
using bilateral::Problem;
using bilateral::RangeKernel;
using bilateral::Role;
using bilateral::SpatialKernel;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

class CollectingLogger final : public nvinfer1::ILogger {
 public:
  void log(Severity /*severity*/, nvinfer1::AsciiChar const* message) noexcept override {
    last = message;
  }
  std::string last;
};

inline CollectingLogger& logger() {
  static CollectingLogger collecting;
  return collecting;
}

class LoggerFinder final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return &logger(); }
};

inline LoggerFinder& loggerFinder() {
  static LoggerFinder finder;
  return finder;
}

inline bool logged(const std::string& text) {
  return logger().last.find(text) != std::string::npos;
}

struct Attributes {
  float scale = 0.125F;
  std::string range = "gaussian";
  std::string spatial = "gaussian";
  int32_t queryPrefix = 1;
  int32_t keyPrefix = 1;
  int32_t causal = 0;

  [[nodiscard]] std::vector<PluginField> fields() const {
    return {
        {"scale", &scale, PluginFieldType::kFLOAT32, 1},
        {"range_kernel", range.data(), PluginFieldType::kCHAR, static_cast<int32_t>(range.size())},
        {"spatial_kernel", spatial.data(), PluginFieldType::kCHAR,
         static_cast<int32_t>(spatial.size())},
        {"query_prefix", &queryPrefix, PluginFieldType::kINT32, 1},
        {"key_prefix", &keyPrefix, PluginFieldType::kINT32, 1},
        {"causal", &causal, PluginFieldType::kINT32, 1},
    };
  }
};

inline nvinfer1::IPluginCreatorV3One& creator() {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  CHECK_EQUAL(count, 1);
  return *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]);
}

using PluginPointer = std::unique_ptr<nvinfer1::IPluginV3>;

inline PluginPointer create(const std::vector<PluginField>& fields,
                            nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return PluginPointer(creator().createPlugin("attention", &collection, phase));
}

inline PluginPointer create(const Attributes& attributes) { return create(attributes.fields()); }

inline nvinfer1::IPluginV3OneCore& core(const PluginPointer& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneCore*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
}
inline nvinfer1::IPluginV3OneBuild& build(const PluginPointer& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
inline nvinfer1::IPluginV3OneRuntime& runtime(const PluginPointer& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

inline Dims dims(const std::vector<int64_t>& sizes) {
  Dims result{};
  result.nbDims = static_cast<int32_t>(sizes.size());
  int32_t axis = 0;
  for (const int64_t size : sizes) {
    result.d[axis++] = size;
  }
  return result;
}

inline PluginTensorDesc tensor(const std::vector<int64_t>& sizes,
                               DataType type = DataType::kFLOAT) {
  return {dims(sizes), type, TensorFormat::kLINEAR, 1.0F};
}

// The inputs of a node: B, H, Nq, Nk, D, then C or P.
struct Shape {
  int64_t batch = 2;
  int64_t heads = 3;
  int64_t queries = 50;
  int64_t keys = 70;
  int64_t headDim = 64;
  int64_t features = 2;
};

inline std::vector<PluginTensorDesc> inputsOf(const std::string& spatial, const Shape& s,
                                              DataType type, bool keyBias) {
  std::vector<PluginTensorDesc> inputs{
      tensor({s.batch, s.heads, s.queries, s.headDim}, type),
      tensor({s.batch, s.heads, s.keys, s.headDim}, type),
      tensor({s.batch, s.heads, s.keys, s.headDim}, type),
  };
  if (spatial == "gaussian") {
    inputs.push_back(tensor({s.queries, s.features}));
    inputs.push_back(tensor({s.keys, s.features}));
    inputs.push_back(tensor({s.heads}));
  } else if (spatial == "dot") {
    inputs.push_back(tensor({s.heads, s.queries, s.features}));
    inputs.push_back(tensor({s.heads, s.keys, s.features}));
  }
  if (keyBias) {
    inputs.push_back(tensor({s.batch, s.keys}));
  }
  return inputs;
}

inline std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& tensors) {
  std::vector<DynamicPluginTensorDesc> result;
  result.reserve(tensors.size());
  for (const PluginTensorDesc& one : tensors) {
    result.push_back({one, one.dims, one.dims, one.dims});
  }
  return result;
}

inline int32_t count(const std::vector<PluginTensorDesc>& tensors) {
  return static_cast<int32_t>(tensors.size());
}

inline int32_t onShapeChange(const PluginPointer& plugin,
                             const std::vector<PluginTensorDesc>& inputs) {
  return runtime(plugin).onShapeChange(inputs.data(), count(inputs), inputs.data(), 1);
}

inline int32_t configure(const PluginPointer& plugin, const std::vector<PluginTensorDesc>& inputs) {
  const auto described = dynamic(inputs);
  return build(plugin).configurePlugin(described.data(), count(inputs), described.data(), 1);
}

inline const std::vector<std::string>& spatialKernels() {
  static const std::vector<std::string> all{"none", "gaussian", "dot"};
  return all;
}

inline Shape shapeFor(const std::string& spatial) {
  Shape shape;
  shape.features = spatial == "dot" ? 16 : 2;
  return shape;
}

inline uint64_t number(bilateral::Arguments& arguments, Argument name) {
  return *static_cast<uint64_t*>(arguments.at(name));
}

inline const void* pointer(uint64_t value) { return reinterpret_cast<const void*>(value); }

// Inputs at 0x1000, 0x2000, ...; the output at 0xA000, scratch memory at 0x100000.
struct FakeTensors {
  FakeTensors() {
    for (size_t i = 0; i < 7; ++i) {
      inputs.push_back(pointer((i + 1) * 0x1000));
    }
  }
  bilateral::Tensors tensors() {
    return {inputs.data(), const_cast<void*>(pointer(0xA000)),
            const_cast<void*>(pointer(0x100000))};
  }
  std::vector<const void*> inputs;
};
