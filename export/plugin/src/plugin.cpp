#include "plugin.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "driver.h"
#include "log.h"
#include "schedule.h"

namespace bilateral {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = 1;

void requireOneOutput(int32_t outputs) {
  if (outputs != 1) {
    throw std::invalid_argument("has one output, not " + std::to_string(outputs));
  }
}

std::vector<PluginTensorDesc> descriptions(const DynamicPluginTensorDesc* inputs, int32_t count) {
  std::vector<PluginTensorDesc> result;
  result.reserve(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    result.push_back(inputs[i].desc);
  }
  return result;
}

}  // namespace

Plugin::Plugin(const Attention& attention)
    : attention_(attention), fields_(std::make_unique<AttentionFields>(attention)) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [this] {
    auto copy = std::make_unique<Plugin>(attention_);
    copy->operands_ = operands_;
    return copy.release();  // TensorRT owns it
  });
}

const char* Plugin::getPluginName() const noexcept { return kOpName; }
const char* Plugin::getPluginVersion() const noexcept { return kOpVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return kOpNamespace; }

int32_t Plugin::getNbOutputs() const noexcept { return 1; }

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs,
                                   DataType const* inputTypes, int32_t nbInputs) const noexcept {
  return guarded(kFailure, [&] {
    requireOneOutput(nbOutputs);
    static_cast<void>(operandsOf(attention_.spatial, nbInputs));
    outputTypes[0] = inputTypes[Operands::kQuery];
    return kSuccess;
  });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
                                nvinfer1::DimsExprs const* /*shapeInputs*/,
                                int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs,
                                int32_t nbOutputs, nvinfer1::IExprBuilder& /*builder*/) noexcept {
  return guarded(kFailure, [&] {
    requireOneOutput(nbOutputs);
    static_cast<void>(operandsOf(attention_.spatial, nbInputs));
    const nvinfer1::DimsExprs& query = inputs[Operands::kQuery];
    if (query.nbDims != 4) {
      throw std::invalid_argument("query has " + std::to_string(query.nbDims) +
                                  " dimensions where [B, H, Nq, D] is expected");
    }
    outputs[0] = query;
    return kSuccess;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors,
                                       int32_t nbInputs, int32_t nbOutputs) noexcept {
  return guarded(false, [&] {
    requireOneOutput(nbOutputs);
    static_cast<void>(operandsOf(attention_.spatial, nbInputs));
    const PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
      return false;
    }
    if (position == Operands::kQuery) {
      return isTokenType(tensor.type);
    }
    const bool isTokens = position <= Operands::kValue || position == nbInputs;
    return tensor.type == (isTokens ? tensors[Operands::kQuery].desc.type : DataType::kFLOAT);
  });
}

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
                                DynamicPluginTensorDesc const* /*outputs*/,
                                int32_t nbOutputs) noexcept {
  return guarded(kFailure, [&] {
    requireOneOutput(nbOutputs);
    const Operands operands = operandsOf(attention_.spatial, nbInputs);
    const auto described = descriptions(inputs, nbInputs);
    requireSupported(attention_, operands, problemOf(attention_, operands, described.data()));
    operands_ = operands;
    return kSuccess;
  });
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
                                DynamicPluginTensorDesc const* /*outputs*/,
                                int32_t /*nbOutputs*/) const noexcept {
  return guarded(size_t{0}, [&] {
    const Operands operands = operandsOf(attention_.spatial, nbInputs);
    auto largest = descriptions(inputs, nbInputs);
    for (int32_t i = 0; i < nbInputs; ++i) {
      largest[static_cast<size_t>(i)].dims = inputs[i].max;
    }
    return workspaceBytes(attention_, operands, problemOf(attention_, operands, largest.data()));
  });
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* inputs, int32_t nbInputs,
                              PluginTensorDesc const* /*outputs*/, int32_t nbOutputs) noexcept {
  return guarded(kFailure, [&] {
    requireOneOutput(nbOutputs);
    const Operands operands = operandsOf(attention_.spatial, nbInputs);
    requireSupported(attention_, operands, problemOf(attention_, operands, inputs));
    operands_ = operands;
    return kSuccess;
  });
}

int32_t Plugin::enqueue(PluginTensorDesc const* inputDescriptions,
                        PluginTensorDesc const* /*outputDescriptions*/, void const* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded(kFailure, [&] {
    if (!operands_) {
      throw std::logic_error("enqueue was called before onShapeChange");
    }
    const Problem problem = problemOf(attention_, *operands_, inputDescriptions);
    Schedule schedule =
        makeSchedule(attention_, *operands_, problem, {inputs, outputs[0], workspace},
                     Driver::instance().computeCapability());
    enqueueSchedule(schedule, stream);
    return kSuccess;
  });
}

nvinfer1::IPluginV3* Plugin::attachToContext(
    nvinfer1::IPluginResourceContext* /*context*/) noexcept {
  return clone();
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
  return fields_->collection();
}

Creator::Creator() {
  using nvinfer1::PluginFieldType;
  constexpr std::array<PluginFieldType, kNumAttributes> kTypes{
      PluginFieldType::kFLOAT32, PluginFieldType::kCHAR,  PluginFieldType::kCHAR,
      PluginFieldType::kINT32,   PluginFieldType::kINT32, PluginFieldType::kINT32};
  for (size_t i = 0; i < fields_.size(); ++i) {
    fields_[i] = {attributeNames()[i], nullptr, kTypes[i], 1};
  }
  collection_ = {kNumAttributes, fields_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const* name,
                                           nvinfer1::PluginFieldCollection const* fields,
                                           nvinfer1::TensorRTPhase /*phase*/) noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&] {
    if (fields == nullptr) {
      throw std::invalid_argument("node " + std::string(name) + " has no attributes");
    }
    try {
      return std::make_unique<Plugin>(attentionFromFields(*fields)).release();
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("node " + std::string(name) + ": " + error.what());
    }
  });
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept { return &collection_; }
const char* Creator::getPluginName() const noexcept { return kOpName; }
const char* Creator::getPluginVersion() const noexcept { return kOpVersion; }
const char* Creator::getPluginNamespace() const noexcept { return kOpNamespace; }

}  // namespace bilateral
