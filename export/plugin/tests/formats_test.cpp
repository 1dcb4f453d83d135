// Types and memory formats the plugin takes and gives.
#include "fixtures.h"

namespace {

TEST(tokens_have_one_type_and_everything_spatial_is_float32) {
  for (const std::string& spatial : spatialKernels()) {
    for (const bool keyBias : {false, true}) {
      for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        Attributes attributes;
        attributes.spatial = spatial;
        const PluginPointer plugin = create(attributes);
        auto tensors = inputsOf(spatial, shapeFor(spatial), type, keyBias);
        const int32_t nbInputs = count(tensors);
        tensors.push_back(tensors[0]);
        for (int32_t position = 0; position <= nbInputs; ++position) {
          auto described = dynamic(tensors);
          const auto supports = [&] {
            return build(plugin).supportsFormatCombination(position, described.data(), nbInputs, 1);
          };
          CHECK(supports());
          auto& changed = described[static_cast<size_t>(position)].desc;
          changed.format = TensorFormat::kCHW32;
          CHECK(!supports());
          changed.format = TensorFormat::kLINEAR;
          changed.type = DataType::kINT32;
          CHECK(!supports());
          const bool spatialInput = position > 2 && position < nbInputs;
          const bool usual = spatialInput || type == DataType::kFLOAT;
          changed.type = usual ? DataType::kHALF : DataType::kFLOAT;
          CHECK_EQUAL(supports(), position == 0);
        }
      }
    }
  }
}

TEST(the_output_has_the_type_and_the_shape_of_the_query) {
  const PluginPointer plugin = create(Attributes{});
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    const std::vector<DataType> inputs{
        type, type, type, DataType::kFLOAT, DataType::kFLOAT, DataType::kFLOAT};
    DataType output{};
    CHECK_EQUAL(build(plugin).getOutputDataTypes(&output, 1, inputs.data(), 6), 0);
    CHECK(output == type);
  }
  // Expressions are opaque: the output's must be the query's very own, dynamic or not.
  std::vector<nvinfer1::DimsExprs> inputs(6);
  inputs[0].nbDims = 4;
  for (size_t axis = 0; axis < 4; ++axis) {
    inputs[0].d[axis] = reinterpret_cast<const nvinfer1::IDimensionExpr*>(100 + axis);
  }
  nvinfer1::DimsExprs output{};
  nvinfer1::IExprBuilder* unused = nullptr;
  CHECK_EQUAL(build(plugin).getOutputShapes(inputs.data(), 6, nullptr, 0, &output, 1, *unused), 0);
  CHECK_EQUAL(output.nbDims, 4);
  for (size_t axis = 0; axis < 4; ++axis) {
    CHECK(output.d[axis] == inputs[0].d[axis]);
  }
  inputs[0].nbDims = 3;
  CHECK(build(plugin).getOutputShapes(inputs.data(), 6, nullptr, 0, &output, 1, *unused) != 0);
}

}  // namespace
