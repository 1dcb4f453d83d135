// Fields written into a plan, and what is made of them; clones.
#include "fixtures.h"

namespace {

TEST(serialised_fields_read_back_as_the_same_attention) {
  for (const char* range : {"dot", "gaussian"}) {
    for (const std::string& spatial : spatialKernels()) {
      const Attributes attributes{0.3F, range, spatial, 2, 5, 1};
      const PluginPointer plugin = create(attributes);
      const PluginFieldCollection* fields = runtime(plugin).getFieldsToSerialize();
      CHECK_EQUAL(fields->nbFields, 6);
      const Attention read = bilateral::attentionFromFields(*fields);
      CHECK_EQUAL(read.scale, 0.3F);
      CHECK(read.range == (attributes.range == "dot" ? RangeKernel::kDot : RangeKernel::kGaussian));
      CHECK_EQUAL(read.queryPrefix, 2);
      CHECK_EQUAL(read.keyPrefix, 5);
      CHECK(read.causal);
      const PluginPointer again(
          creator().createPlugin("again", fields, nvinfer1::TensorRTPhase::kRUNTIME));
      CHECK(again != nullptr);
      const auto inputs = inputsOf(spatial, shapeFor(spatial), DataType::kHALF, true);
      CHECK_EQUAL(onShapeChange(again, inputs), 0);
    }
  }
}

TEST(a_clone_outlives_the_original_and_serialises_its_own_fields) {
  PluginPointer plugin = create(Attributes{});
  const PluginPointer clone(plugin->clone());
  const PluginPointer attached(runtime(plugin).attachToContext(nullptr));
  plugin.reset();
  CHECK_EQUAL(bilateral::attentionFromFields(*runtime(clone).getFieldsToSerialize()).scale, 0.125F);
  CHECK_EQUAL(bilateral::attentionFromFields(*runtime(attached).getFieldsToSerialize()).keyPrefix,
              1);
}

}  // namespace
