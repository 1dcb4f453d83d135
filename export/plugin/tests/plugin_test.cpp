// Drives the plugin through TensorRT's C++ interfaces, without TensorRT and without a GPU. The
// kernel table is made up (tests/export/plugin/conftest.py); libcuda is tests/fake_cuda.cpp.
#include "plugin.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fake_cuda.h"
#include "log.h"
#include "schedule.h"

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" const char* bilateralPluginContents();

namespace {

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

// ---------------------------------------------------------------------------------------- helpers

class CollectingLogger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity /*severity*/, nvinfer1::AsciiChar const* message) noexcept override {
    last = message;
  }
  nvinfer1::ILogger* findLogger() override { return this; }
  std::string last;
};

CollectingLogger& logger() {
  static CollectingLogger collecting;
  return collecting;
}

bool logged(const std::string& text) { return logger().last.find(text) != std::string::npos; }

struct Attributes {
  float scale = 0.125F;
  std::string range = "gaussian";
  std::string spatial = "gaussian";
  int32_t queryPrefix = 1;
  int32_t keyPrefix = 1;
  int32_t causal = 0;

  std::vector<PluginField> fields() const {
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

nvinfer1::IPluginCreatorV3One& creator() {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  CHECK_EQUAL(count, 1);
  return *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]);
}

using PluginPointer = std::unique_ptr<nvinfer1::IPluginV3>;

PluginPointer create(const std::vector<PluginField>& fields,
                     nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return PluginPointer(creator().createPlugin("attention", &collection, phase));
}

PluginPointer create(const Attributes& attributes) { return create(attributes.fields()); }

nvinfer1::IPluginV3OneCore& core(const PluginPointer& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneCore*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
}
nvinfer1::IPluginV3OneBuild& build(const PluginPointer& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
nvinfer1::IPluginV3OneRuntime& runtime(const PluginPointer& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

Dims dims(const std::vector<int64_t>& sizes) {
  Dims result{};
  result.nbDims = static_cast<int32_t>(sizes.size());
  int32_t axis = 0;
  for (const int64_t size : sizes) {
    result.d[axis++] = size;
  }
  return result;
}

PluginTensorDesc tensor(const std::vector<int64_t>& sizes, DataType type = DataType::kFLOAT) {
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

std::vector<PluginTensorDesc> inputsOf(const std::string& spatial, const Shape& s, DataType type,
                                       bool keyBias) {
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

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& tensors) {
  std::vector<DynamicPluginTensorDesc> result;
  for (const PluginTensorDesc& one : tensors) {
    result.push_back({one, one.dims, one.dims, one.dims});
  }
  return result;
}

int32_t count(const std::vector<PluginTensorDesc>& tensors) {
  return static_cast<int32_t>(tensors.size());
}

int32_t onShapeChange(const PluginPointer& plugin, const std::vector<PluginTensorDesc>& inputs) {
  return runtime(plugin).onShapeChange(inputs.data(), count(inputs), inputs.data(), 1);
}

int32_t configure(const PluginPointer& plugin, const std::vector<PluginTensorDesc>& inputs) {
  const auto described = dynamic(inputs);
  return build(plugin).configurePlugin(described.data(), count(inputs), described.data(), 1);
}

const std::vector<std::string>& spatialKernels() {
  static const std::vector<std::string> all{"none", "gaussian", "dot"};
  return all;
}

Shape shapeFor(const std::string& spatial) {
  Shape shape;
  shape.features = spatial == "dot" ? 16 : 2;
  return shape;
}

// --------------------------------------------------------------------------------------- creator

TEST(the_library_offers_one_creator_under_the_operators_name) {
  CHECK_EQUAL(std::string(creator().getPluginName()), "BilateralAttention");
  CHECK_EQUAL(std::string(creator().getPluginNamespace()), "ai.bilateral");
  CHECK_EQUAL(std::string(creator().getPluginVersion()), "1");
  CHECK_EQUAL(std::string(creator().getInterfaceInfo().kind), "PLUGIN CREATOR_V3ONE");
}

TEST(the_creator_names_every_attribute_with_its_type) {
  const PluginFieldCollection* fields = creator().getFieldNames();
  CHECK_EQUAL(fields->nbFields, 6);
  const Attributes attributes;
  const auto expected = attributes.fields();
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const auto index = static_cast<size_t>(i);
    CHECK_EQUAL(std::string(fields->fields[i].name), expected[index].name);
    CHECK(fields->fields[i].type == expected[index].type);
  }
}

TEST(the_plugin_has_the_creators_name_and_all_capabilities) {
  const PluginPointer plugin = create(Attributes{});
  CHECK(plugin != nullptr);
  CHECK_EQUAL(std::string(core(plugin).getPluginName()), creator().getPluginName());
  CHECK_EQUAL(std::string(core(plugin).getPluginNamespace()), creator().getPluginNamespace());
  CHECK_EQUAL(std::string(core(plugin).getPluginVersion()), creator().getPluginVersion());
  CHECK_EQUAL(build(plugin).getNbOutputs(), 1);
}

TEST(integers_of_64_bits_and_doubles_are_read_too) {
  const int64_t one = 1;
  const double scale = 0.5;
  Attributes attributes;
  auto fields = attributes.fields();
  fields[0] = {"scale", &scale, PluginFieldType::kFLOAT64, 1};
  fields[3] = {"query_prefix", &one, PluginFieldType::kINT64, 1};
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  const Attention attention = bilateral::attentionFromFields(collection);
  CHECK_EQUAL(attention.scale, 0.5F);
  CHECK_EQUAL(attention.queryPrefix, 1);
}

TEST(a_string_may_count_its_terminating_zero) {
  Attributes attributes;
  auto fields = attributes.fields();
  fields[1].length += 1;
  CHECK(create(fields) != nullptr);
}

TEST(attributes_that_are_missing_unknown_or_out_of_range_are_refused_by_name) {
  setLoggerFinder(&logger());
  for (size_t missing = 0; missing < 6; ++missing) {
    auto fields = Attributes{}.fields();
    const std::string name = fields[missing].name;
    fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(missing));
    CHECK(create(fields) == nullptr);
    CHECK(logged("node attention") && logged(name) && logged("missing"));
  }
  struct Bad {
    Attributes attributes;
    const char* name;
  };
  std::vector<Bad> wrong(6);
  wrong[0].attributes.scale = NAN, wrong[0].name = "scale";
  wrong[1].attributes.range = "linear", wrong[1].name = "linear";
  wrong[2].attributes.spatial = "", wrong[2].name = "spatial_kernel";
  wrong[3].attributes.queryPrefix = -1, wrong[3].name = "query_prefix";
  wrong[4].attributes.keyPrefix = -2, wrong[4].name = "key_prefix";
  wrong[5].attributes.causal = 2, wrong[5].name = "causal";
  for (const Bad& bad : wrong) {
    CHECK(create(bad.attributes) == nullptr);
    CHECK(logged(bad.name));
  }
  auto fields = Attributes{}.fields();
  fields[0].type = PluginFieldType::kINT8;
  CHECK(create(fields) == nullptr);
  CHECK(logged("scale is not a float"));
  setLoggerFinder(nullptr);
}

// --------------------------------------------------------------------------------- serialisation

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

// ------------------------------------------------------------------------------- types and shapes

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
          auto supports = [&] {
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
          changed.type = spatialInput               ? DataType::kHALF
                         : type == DataType::kFLOAT ? DataType::kHALF
                                                    : DataType::kFLOAT;
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
  setLoggerFinder(&logger());
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
  setLoggerFinder(&logger());
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
  CHECK(logged("no kernel for head size 512"));
  attributes = Attributes{};
  attributes.spatial = "dot";
  CHECK(configure(create(attributes),
                  inputsOf("dot", Shape{2, 3, 50, 70, 64, 12}, DataType::kHALF, false)) != 0);
  CHECK(logged("features P is 12"));
  setLoggerFinder(nullptr);
}

// -------------------------------------------------------------------------------------- workspace

TEST(scratch_memory_is_asked_for_the_largest_shapes_and_only_where_it_is_used) {
  auto workspace = [](const char* range, const std::string& spatial, Shape shape) {
    Attributes attributes;
    attributes.range = range;
    attributes.spatial = spatial;
    auto described = dynamic(inputsOf(spatial, shape, DataType::kHALF, false));
    for (auto& one : described) {
      one.desc.dims.d[0] = -1;  // known from the profile alone
    }
    return build(create(attributes))
        .getWorkspaceSize(described.data(), static_cast<int32_t>(described.size()),
                          described.data(), 1);
  };
  CHECK_EQUAL(workspace("dot", "none", shapeFor("none")), 0U);
  // A row of zeros where the kernel reads key terms and there are none: 70 * 4.
  CHECK_EQUAL(workspace("dot", "gaussian", shapeFor("gaussian")), 512U);
  // Key terms: B H Nk float32 = 2 * 3 * 70 * 4 = 1680, in units of 256.
  CHECK_EQUAL(workspace("gaussian", "none", shapeFor("none")), 1792U);
  // Features: H N P of two bytes for 50 queries and 70 keys, 4800 and 6720.
  CHECK_EQUAL(workspace("dot", "dot", shapeFor("dot")), 4864U + 6912U + 512U);
  Shape large = shapeFor("none");
  large.batch = 64;
  CHECK_EQUAL(workspace("gaussian", "none", large), 64U * 3U * 70U * 4U);
}

TEST(a_plan_for_far_tiles_is_made_from_4096_keys_on) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kGaussian, 6);
  Attention attention;
  attention.spatial = SpatialKernel::kGaussian;
  Problem problem{DataType::kHALF, 1, 2, 4096, 4095, 64, 2};
  CHECK_EQUAL(bilateral::workspaceBytes(attention, operands, problem), 16384U);  // zeros alone
  problem.keys = 4096;
  // Key terms, norm and term of 4096 / 32 tiles, boxes, ranges of 4096 / 64 rows of tiles.
  const size_t expected = 2 * 4096 * 4 + 2 * (2 * 128 * 4) + 128 * 2 * 2 * 4 + 2 * 64 * 2 * 4;
  CHECK_EQUAL(bilateral::workspaceBytes(attention, operands, problem), expected);
}

// --------------------------------------------------------------------------------------- schedule

uint64_t number(bilateral::Arguments& arguments, Argument name) {
  return *static_cast<uint64_t*>(arguments.at(name));
}

const void* pointer(uint64_t value) { return reinterpret_cast<const void*>(value); }

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

TEST(plain_attention_is_one_launch_over_contiguous_tensors) {
  Attention attention;
  attention.scale = 0.5F;
  const Operands operands = bilateral::operandsOf(SpatialKernel::kNone, 3);
  const Problem problem{DataType::kHALF, 2, 3, 50, 70, 64, 0};
  FakeTensors fake;
  bilateral::Schedule schedule =
      bilateral::makeSchedule(attention, operands, problem, fake.tensors(), 90);
  CHECK_EQUAL(schedule.count, 1);
  auto& launch = schedule.launches[0];
  CHECK(launch.kernel->role == Role::kAttention);
  CHECK(!launch.kernel->keyTerm);
  CHECK_EQUAL(launch.kernel->headDim, 64);
  CHECK_EQUAL(launch.grid, 1U * 2 * 3);  // ceil(50 / 64) * B * H
  auto& a = launch.arguments;
  CHECK_EQUAL(number(a, Argument::query), 0x1000U);
  CHECK_EQUAL(number(a, Argument::value), 0x3000U);
  CHECK_EQUAL(number(a, Argument::output), 0xA000U);
  CHECK_EQUAL(number(a, Argument::query_positions), 0U);
  CHECK_EQUAL(number(a, Argument::key_term), 0U);
  CHECK_EQUAL(number(a, Argument::stride_qb), 3U * 50 * 64);
  CHECK_EQUAL(number(a, Argument::stride_qh), 50U * 64);
  CHECK_EQUAL(number(a, Argument::stride_kh), 70U * 64);
  CHECK_EQUAL(number(a, Argument::stride_vb), 3U * 70 * 64);
  CHECK_EQUAL(number(a, Argument::stride_on), 64U);
  CHECK_EQUAL(number(a, Argument::n_query), 50U);
  CHECK_EQUAL(number(a, Argument::n_key), 70U);
  CHECK_EQUAL(number(a, Argument::diagonal), 70U);
  CHECK_EQUAL(number(a, Argument::has_ranges), 0U);
  CHECK_EQUAL(*static_cast<float*>(a.at(Argument::scale)), 0.5F);
}

TEST(causal_attention_is_aligned_to_the_lower_right) {
  Attention attention;
  attention.causal = true;
  const Operands operands = bilateral::operandsOf(SpatialKernel::kNone, 3);
  FakeTensors fake;
  bilateral::Schedule schedule = bilateral::makeSchedule(
      attention, operands, {DataType::kHALF, 1, 1, 50, 70, 64, 0}, fake.tensors(), 90);
  CHECK_EQUAL(number(schedule.launches[0].arguments, Argument::diagonal), 20U);
  schedule = bilateral::makeSchedule(attention, operands, {DataType::kHALF, 1, 1, 70, 50, 64, 0},
                                     fake.tensors(), 90);
  CHECK_EQUAL(*static_cast<int32_t*>(schedule.launches[0].arguments.at(Argument::diagonal)), -20);
}

TEST(a_key_bias_alone_is_the_key_term_of_every_head) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kGaussian, 7);
  Attention attention;
  attention.spatial = SpatialKernel::kGaussian;
  FakeTensors fake;
  bilateral::Schedule schedule = bilateral::makeSchedule(
      attention, operands, {DataType::kBF16, 2, 3, 50, 70, 64, 2}, fake.tensors(), 80);
  CHECK_EQUAL(schedule.count, 1);
  CHECK(schedule.launches[0].kernel->keyTerm);
  auto& a = schedule.launches[0].arguments;
  CHECK_EQUAL(number(a, Argument::query_positions), 0x4000U);
  CHECK_EQUAL(number(a, Argument::key_positions), 0x5000U);
  CHECK_EQUAL(number(a, Argument::bandwidth), 0x6000U);
  CHECK_EQUAL(number(a, Argument::key_term), 0x7000U);
  CHECK_EQUAL(number(a, Argument::stride_tb), 70U);
  CHECK_EQUAL(number(a, Argument::stride_th), 0U);
}

TEST(the_gaussian_range_kernel_computes_key_terms_first) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kNone, 4);
  Attention attention;
  attention.range = RangeKernel::kGaussian;
  FakeTensors fake;
  bilateral::Schedule schedule = bilateral::makeSchedule(
      attention, operands, {DataType::kHALF, 2, 3, 50, 70, 64, 0}, fake.tensors(), 90);
  CHECK_EQUAL(schedule.count, 2);
  auto& first = schedule.launches[0];
  CHECK(first.kernel->role == Role::kKeyTiles);
  CHECK_EQUAL(first.grid, 3U * 2 * 3);  // ceil(70 / 32) * B * H
  CHECK_EQUAL(number(first.arguments, Argument::gaussian_range), 1U);
  CHECK_EQUAL(number(first.arguments, Argument::has_bias), 1U);
  CHECK_EQUAL(number(first.arguments, Argument::key_bias), 0x4000U);
  CHECK_EQUAL(number(first.arguments, Argument::stride_bias), 70U);
  CHECK_EQUAL(number(first.arguments, Argument::coordinates), 0U);
  auto& second = schedule.launches[1].arguments;
  CHECK_EQUAL(number(second, Argument::key_term), number(first.arguments, Argument::key_term));
  CHECK_EQUAL(number(second, Argument::stride_tb), 3U * 70);
  CHECK_EQUAL(number(second, Argument::stride_th), 70U);
}

TEST(a_kernel_that_reads_key_terms_gets_zeros_where_there_are_none) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kGaussian, 6);
  Attention attention;
  attention.spatial = SpatialKernel::kGaussian;
  FakeTensors fake;
  bilateral::Schedule schedule = bilateral::makeSchedule(
      attention, operands, {DataType::kHALF, 2, 3, 50, 70, 64, 2}, fake.tensors(), 90);
  CHECK_EQUAL(schedule.count, 1);
  auto& a = schedule.launches[0].arguments;
  CHECK(schedule.zeros == pointer(0x100000));
  CHECK_EQUAL(schedule.numZeros, 70);
  CHECK_EQUAL(number(a, Argument::key_term), 0x100000U);
  CHECK_EQUAL(number(a, Argument::stride_tb), 0U);
  CHECK_EQUAL(number(a, Argument::stride_th), 0U);
}

TEST(position_features_are_rounded_before_the_attention) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kDot, 5);
  Attention attention;
  attention.spatial = SpatialKernel::kDot;
  attention.queryPrefix = 1;
  attention.keyPrefix = 2;
  FakeTensors fake;
  bilateral::Schedule schedule = bilateral::makeSchedule(
      attention, operands, {DataType::kHALF, 2, 3, 500, 700, 64, 24}, fake.tensors(), 120);
  CHECK_EQUAL(schedule.count, 3);
  auto& queries = schedule.launches[0];
  auto& keys = schedule.launches[1];
  CHECK(queries.kernel->role == Role::kFeatures);
  CHECK_EQUAL(queries.grid, 36U);  // ceil(3 * 500 * 24 / 1024)
  CHECK_EQUAL(number(queries.arguments, Argument::source), 0x4000U);
  CHECK_EQUAL(number(queries.arguments, Argument::n_tokens), 500U);
  CHECK_EQUAL(number(queries.arguments, Argument::prefix), 1U);
  CHECK_EQUAL(*static_cast<float*>(queries.arguments.at(Argument::largest)), 65504.0F);
  CHECK_EQUAL(number(keys.arguments, Argument::source), 0x5000U);
  CHECK_EQUAL(number(keys.arguments, Argument::prefix), 2U);
  auto& attend = schedule.launches[2];
  CHECK_EQUAL(attend.kernel->features, 32);
  CHECK_EQUAL(number(attend.arguments, Argument::n_features), 24U);
  CHECK_EQUAL(number(attend.arguments, Argument::query_positions),
              number(queries.arguments, Argument::target));
  CHECK_EQUAL(number(attend.arguments, Argument::key_positions),
              number(keys.arguments, Argument::target));
}

TEST(many_keys_under_a_gaussian_spatial_kernel_are_planned) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kGaussian, 6);
  Attention attention;
  attention.spatial = SpatialKernel::kGaussian;
  FakeTensors fake;
  bilateral::Schedule schedule = bilateral::makeSchedule(
      attention, operands, {DataType::kBF16, 1, 2, 4096, 4096, 64, 2}, fake.tensors(), 90);
  CHECK_EQUAL(schedule.count, 3);
  CHECK(schedule.launches[0].kernel->role == Role::kKeyTiles);
  CHECK(schedule.launches[1].kernel->role == Role::kPlan);
  CHECK(schedule.launches[2].kernel->role == Role::kAttention);
  auto& tiles = schedule.launches[0].arguments;
  auto& plan = schedule.launches[1];
  CHECK_EQUAL(number(tiles, Argument::coordinates), 2U);
  CHECK_EQUAL(number(tiles, Argument::gaussian_range), 0U);
  CHECK_EQUAL(plan.grid, 64U * 2);
  CHECK_EQUAL(plan.kernel->blockM, schedule.launches[2].kernel->blockM);
  CHECK_EQUAL(plan.kernel->coordinates, 2);
  CHECK_EQUAL(*static_cast<float*>(plan.arguments.at(Argument::budget)), 0x1p-10F);
  CHECK_EQUAL(number(schedule.launches[2].arguments, Argument::has_ranges), 1U);
  CHECK_EQUAL(number(schedule.launches[2].arguments, Argument::tile_ranges),
              number(plan.arguments, Argument::tile_ranges));
}

TEST(scratch_buffers_lie_within_what_was_asked_for_and_do_not_overlap) {
  for (const int32_t keys : {64, 5000}) {
    for (const int32_t spatialInputs : {3, 6, 5}) {
      const SpatialKernel spatial = spatialInputs == 3   ? SpatialKernel::kNone
                                    : spatialInputs == 6 ? SpatialKernel::kGaussian
                                                         : SpatialKernel::kDot;
      Attention attention;
      attention.range = RangeKernel::kGaussian;
      attention.spatial = spatial;
      const Operands operands = bilateral::operandsOf(spatial, spatialInputs);
      const Problem problem{DataType::kFLOAT,
                            2,
                            3,
                            100,
                            keys,
                            64,
                            spatial == SpatialKernel::kDot    ? 16
                            : spatial == SpatialKernel::kNone ? 0
                                                              : 2};
      FakeTensors fake;
      bilateral::Schedule schedule =
          bilateral::makeSchedule(attention, operands, problem, fake.tensors(), 86);
      const size_t bytes = bilateral::workspaceBytes(attention, operands, problem);
      std::vector<uint64_t> begins;
      for (int32_t i = 0; i < schedule.count; ++i) {
        auto& arguments = schedule.launches[static_cast<size_t>(i)].arguments;
        for (const Argument name :
             {Argument::target, Argument::key_term, Argument::tile_norm, Argument::tile_term,
              Argument::tile_boxes, Argument::tile_ranges}) {
          const uint64_t value = number(arguments, name);
          if (value >= 0x100000U) {
            CHECK(value < 0x100000U + bytes);
            CHECK_EQUAL(value % 256, 0U);
            begins.push_back(value);
          }
        }
      }
      CHECK(!begins.empty());
    }
  }
}

TEST(the_smallest_class_that_holds_the_head_size_is_taken) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kNone, 3);
  FakeTensors fake;
  for (const auto& [size, expected] :
       std::vector<std::pair<int32_t, int32_t>>{{8, 64}, {64, 64}, {72, 128}, {128, 128}}) {
    bilateral::Schedule schedule = bilateral::makeSchedule(
        Attention{}, operands, {DataType::kHALF, 1, 1, 10, 10, size, 0}, fake.tensors(), 90);
    CHECK_EQUAL(schedule.launches[0].kernel->headDim, expected);
    CHECK_EQUAL(number(schedule.launches[0].arguments, Argument::head_dim),
                static_cast<uint64_t>(size));
  }
}

TEST(code_runs_on_the_gpus_it_says_and_on_no_other) {
  const Operands operands = bilateral::operandsOf(SpatialKernel::kNone, 3);
  const Problem problem{DataType::kHALF, 1, 1, 10, 10, 64, 0};
  FakeTensors fake;
  for (const int32_t capability : {80, 86, 89, 90, 100, 120}) {
    CHECK_EQUAL(
        bilateral::makeSchedule(Attention{}, operands, problem, fake.tensors(), capability).count,
        1);
  }
  for (const int32_t capability : {70, 75, 87, 103, 121}) {
    std::string message;
    try {
      bilateral::makeSchedule(Attention{}, operands, problem, fake.tensors(), capability);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message.find("sm_" + std::to_string(capability)) != std::string::npos);
    CHECK(message.find("sm_80, sm_86, sm_89, sm_90, sm_100, sm_120") != std::string::npos);
  }
}

// ----------------------------------------------------------------------------------- the driver

// The stand-in for libcuda, which is on LD_LIBRARY_PATH in these cases alone.
FakeCuda& fakeDriver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  CHECK(library != nullptr);
  const auto state = reinterpret_cast<FakeCudaState>(dlsym(library, "fakeCuda"));
  CHECK(state != nullptr);
  FakeCuda& fake = *state();
  fake.hasContext = true;
  fake.computeCapabilityMajor = 9;
  fake.computeCapabilityMinor = 0;
  fake.launches = 0;
  fake.failLaunchWith = 0;
  return fake;
}

TEST(without_a_driver_the_plugin_loads_and_enqueue_says_why_it_cannot) {
  setLoggerFinder(&logger());
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = nullptr;
  CHECK(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output, nullptr,
                                nullptr) != 0);
  CHECK(logged("no NVIDIA driver"));
  setLoggerFinder(nullptr);
}

TEST(enqueue_before_shapes_are_known_is_an_error) {
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  FakeTensors fake;
  void* output = nullptr;
  CHECK(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output, nullptr,
                                nullptr) != 0);
}

TEST(driver_enqueue_launches_in_order_on_the_stream_with_packed_arguments) {
  FakeCuda& driver = fakeDriver();
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = const_cast<void*>(pointer(0xA000));
  void* workspace = const_cast<void*>(pointer(0x100000));
  auto* stream = reinterpret_cast<cudaStream_t>(0x5EA);
  auto enqueue = [&] {
    return runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output,
                                   workspace, stream);
  };
  CHECK_EQUAL(enqueue(), 0);
  CHECK_EQUAL(driver.launches, 2);
  CHECK_EQUAL(std::string(driver.launch[0].kernel), "key_tiles_fp16");
  CHECK_EQUAL(std::string(driver.launch[1].kernel), "attention_fp16");
  CHECK(driver.launch[1].stream == stream);
  CHECK_EQUAL(driver.launch[1].block[0], 128U);
  CHECK_EQUAL(driver.launch[1].sharedBytes, 65536U);
  CHECK_EQUAL(driver.sharedBytesAllowed, 65536);
  CHECK_EQUAL(driver.launch[1].grid[0], 6U);
  // `query` first, `scale` last but for Triton's two scratch pointers, which are null.
  CHECK_EQUAL(driver.launch[1].arguments[0], 0x1000U);
  CHECK_EQUAL(driver.launch[1].arguments[3], 0xA000U);
  const int32_t last = driver.launch[1].argumentCount - 1;
  CHECK_EQUAL(driver.launch[1].arguments[last], 0U);
  CHECK_EQUAL(driver.launch[1].arguments[last - 1], 0U);
  float scale = 0.0F;
  std::memcpy(&scale, &driver.launch[1].arguments[last - 2], sizeof(scale));
  CHECK_EQUAL(scale, 0.125F);
  const int32_t loaded = driver.librariesLoaded;
  CHECK_EQUAL(enqueue(), 0);
  CHECK_EQUAL(driver.librariesLoaded, loaded);  // loaded once
}

TEST(driver_zeros_are_written_before_the_launch) {
  FakeCuda& driver = fakeDriver();
  Attributes attributes;
  attributes.range = "dot";
  const PluginPointer plugin = create(attributes);
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = const_cast<void*>(pointer(0xA000));
  void* workspace = const_cast<void*>(pointer(0x100000));
  CHECK_EQUAL(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output,
                                      workspace, nullptr),
              0);
  CHECK(driver.cleared == workspace);
  CHECK_EQUAL(driver.clearedCount, 70);
  CHECK_EQUAL(driver.launches, 1);
}

TEST(driver_a_gpu_without_code_is_named) {
  FakeCuda& driver = fakeDriver();
  driver.computeCapabilityMajor = 7;
  driver.computeCapabilityMinor = 5;
  setLoggerFinder(&logger());
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = nullptr;
  CHECK(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output, nullptr,
                                nullptr) != 0);
  CHECK(logged("sm_75"));
  CHECK_EQUAL(driver.launches, 0);
  setLoggerFinder(nullptr);
}

TEST(driver_errors_carry_the_drivers_reason) {
  FakeCuda& driver = fakeDriver();
  driver.failLaunchWith = 700;
  setLoggerFinder(&logger());
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = nullptr;
  auto enqueue = [&] {
    return runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output,
                                   nullptr, nullptr);
  };
  CHECK(enqueue() != 0);
  CHECK(logged("an error of the fake driver (700)"));
  driver.hasContext = false;
  CHECK(enqueue() != 0);
  CHECK(logged("no current CUDA device"));
  setLoggerFinder(nullptr);
}

TEST(without_a_logger_a_message_goes_to_the_handler) {
  static std::string received;
  bilateral::setMessageHandler([](const char* message) { received = message; });
  CHECK(create(std::vector<PluginField>{}) == nullptr);
  bilateral::setMessageHandler(nullptr);
  CHECK(received.find("scale is missing") != std::string::npos);
}

TEST(the_library_says_what_it_holds) {
  const std::string contents = bilateralPluginContents();
  CHECK(contents.find("\"version\": \"1\"") != std::string::npos);
  CHECK(contents.find("[80, 86, 89, 90, 100, 120]") != std::string::npos);
}

}  // namespace

int main(int count, char** names) { return check::run(count - 1, names + 1) == 0 ? 0 : 1; }
