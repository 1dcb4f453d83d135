// Shapes: which are taken, which refused, and with which words.
#include "fixtures.h"

namespace {

TEST(the_number_of_inputs_follows_from_the_spatial_kernel) {
  struct Expected {
    SpatialKernel spatial;
    int32_t least;
  };
  for (const Expected expected :
       {Expected{SpatialKernel::kNone, 3}, Expected{SpatialKernel::kGaussian, 6},
        Expected{SpatialKernel::kDot, 5}}) {
    for (int32_t inputs = 0; inputs < 9; ++inputs) {
      bool accepted = true;
      try {
        const Operands operands = bilateral::operandsOf(expected.spatial, inputs);
        CHECK_EQUAL(operands.keyBias, inputs == expected.least ? -1 : expected.least);
      } catch (const std::invalid_argument&) {
        accepted = false;
      }
      CHECK_EQUAL(accepted, inputs == expected.least || inputs == expected.least + 1);
    }
  }
}

TEST(every_variant_configures_with_and_without_dynamic_batch_and_length) {
  for (const std::string& spatial : spatialKernels()) {
    for (const char* range : {"dot", "gaussian"}) {
      for (const bool keyBias : {false, true}) {
        for (const int64_t unknown : {0, 1, 2}) {
          Attributes attributes;
          attributes.spatial = spatial;
          attributes.range = range;
          const PluginPointer plugin = create(attributes);
          Shape shape = shapeFor(spatial);
          shape.batch = unknown > 0 ? -1 : shape.batch;
          if (unknown > 1) {
            shape.queries = shape.keys = -1;
          }
          CHECK_EQUAL(configure(plugin, inputsOf(spatial, shape, DataType::kBF16, keyBias)), 0);
        }
      }
    }
  }
}

TEST(shapes_that_disagree_are_refused_with_both_shown) {
  setLoggerFinder(&loggerFinder());
  const PluginPointer plugin = create(Attributes{});
  const auto good = inputsOf("gaussian", Shape{}, DataType::kFLOAT, true);
  CHECK_EQUAL(onShapeChange(plugin, good), 0);
  struct Bad {
    size_t input;
    std::vector<int64_t> sizes;
    const char* message;
  };
  const std::vector<Bad> wrong{
      {0, {2, 3, 50}, "query has shape [2, 3, 50] where [B, H, Nq, D]"},
      {1, {2, 3, 70, 32}, "key has shape [2, 3, 70, 32] where [2, 3, Nk, 64]"},
      {1, {1, 3, 70, 64}, "key has shape"},
      {2, {2, 3, 71, 64}, "value has shape"},
      {3, {51, 2}, "query_positions has shape [51, 2] where [50, C]"},
      {4, {70, 3}, "key_positions has shape"},
      {5, {4}, "bandwidth has shape [4] where [3]"},
      {6, {2, 71}, "key_bias has shape"},
  };
  for (const Bad& bad : wrong) {
    auto inputs = good;
    inputs[bad.input].dims = dims(bad.sizes);
    CHECK(onShapeChange(plugin, inputs) != 0);
    CHECK_EQUAL(logged(bad.message) ? std::string(bad.message) : logger().last,
                std::string(bad.message));
  }
  auto inputs = inputsOf("gaussian", Shape{2, 3, 50, 70, 64, 4}, DataType::kFLOAT, false);
  CHECK(configure(plugin, inputs) != 0);
  CHECK(logged("4 coordinates"));
  inputs = good;
  inputs[3].type = DataType::kHALF;
  CHECK(onShapeChange(plugin, inputs) != 0);
  CHECK(logged("query_positions must be float32"));
  inputs = good;
  inputs[1].type = DataType::kHALF;
  CHECK(onShapeChange(plugin, inputs) != 0);
  CHECK(logged("one type"));
  setLoggerFinder(nullptr);
}

TEST(more_prefix_tokens_than_tokens_are_refused) {
  Attributes attributes;
  attributes.queryPrefix = 51;
  const PluginPointer plugin = create(attributes);
  CHECK(onShapeChange(plugin, inputsOf("gaussian", Shape{}, DataType::kFLOAT, false)) != 0);
}

TEST(what_no_kernel_can_do_is_refused_when_the_plan_is_built) {
  setLoggerFinder(&loggerFinder());
  Attributes attributes;
  attributes.scale = -1.0F;
  CHECK(configure(create(attributes), inputsOf("gaussian", Shape{}, DataType::kHALF, false)) != 0);
  CHECK(logged("scale"));
  const PluginPointer plugin = create(Attributes{});
  CHECK(configure(plugin,
                  inputsOf("gaussian", Shape{2, 3, 50, 70, 60, 2}, DataType::kHALF, false)) != 0);
  CHECK(logged("head size D is 60"));
  CHECK(configure(plugin,
                  inputsOf("gaussian", Shape{2, 3, 50, 70, 512, 2}, DataType::kHALF, false)) != 0);
  CHECK(logged("no kernel for float16, head size 512"));
  attributes = Attributes{};
  attributes.spatial = "dot";
  CHECK(configure(create(attributes),
                  inputsOf("dot", Shape{2, 3, 50, 70, 64, 12}, DataType::kHALF, false)) != 0);
  CHECK(logged("features P is 12"));
  setLoggerFinder(nullptr);
}

}  // namespace
