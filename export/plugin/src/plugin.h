// The BilateralAttention node as a TensorRT V3 plugin.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <optional>

#include "attention.h"

namespace bilateral {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(const Attention& attention);

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // Core
  [[nodiscard]] nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  [[nodiscard]] nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  [[nodiscard]] nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  // Build
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
                          nvinfer1::DynamicPluginTensorDesc const* outputs,
                          int32_t nbOutputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
                             nvinfer1::DataType const* inputTypes,
                             int32_t nbInputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
                          nvinfer1::DimsExprs const* shapeInputs, int32_t nbShapeInputs,
                          nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                 int32_t nbInputs, int32_t nbOutputs) noexcept override;
  [[nodiscard]] int32_t getNbOutputs() const noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
                          nvinfer1::DynamicPluginTensorDesc const* outputs,
                          int32_t nbOutputs) const noexcept override;

  // Runtime
  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t nbInputs,
                        nvinfer1::PluginTensorDesc const* outputs,
                        int32_t nbOutputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDescriptions,
                  nvinfer1::PluginTensorDesc const* outputDescriptions, void const* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  Attention attention_;
  std::unique_ptr<AttentionFields> fields_;
  // Known from the last shapes on: enqueue is not told how many inputs there are.
  std::optional<Operands> operands_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator();

  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name,
                                    nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
  [[nodiscard]] nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  [[nodiscard]] nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  [[nodiscard]] nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

 private:
  std::array<nvinfer1::PluginField, kNumAttributes> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace bilateral
