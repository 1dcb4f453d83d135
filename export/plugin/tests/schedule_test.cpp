// Scratch memory, and the launches of one call with their arguments.
#include <map>
#include <set>
#include <tuple>

#include "fixtures.h"

namespace {

TEST(scratch_memory_is_asked_for_the_largest_shapes_and_only_where_it_is_used) {
  const auto workspace = [](const char* range, const std::string& spatial, Shape shape) {
    Attributes attributes;
    attributes.range = range;
    attributes.spatial = spatial;
    auto described = dynamic(inputsOf(spatial, shape, DataType::kHALF, false));
    for (auto& one : described) {
      one.desc.dims.d[0] = -1;  // known from the profile alone
      one.min.d[0] = 1;
      one.opt.d[0] = 1;
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
  const size_t expected = (2 * 4096 * 4) + (2 * 2 * 128 * 4) + (128 * 2 * 2 * 4) + (2 * 64 * 2 * 4);
  CHECK_EQUAL(bilateral::workspaceBytes(attention, operands, problem), expected);
}

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
  schedule = bilateral::makeSchedule(
      attention, operands, {DataType::kHALF, 1, 2, 4096, 4096, 64, 2}, fake.tensors(), 90);
  CHECK_EQUAL(*static_cast<float*>(schedule.launches[1].arguments.at(Argument::budget)), 0x1p-13F);
}

struct Buffer {
  uint64_t begin;
  size_t bytes;
};

bool operator<(const Buffer& a, const Buffer& b) {
  return std::tie(a.begin, a.bytes) < std::tie(b.begin, b.bytes);
}

// What the launches read and write of scratch memory, from 0x100000 on; `sizes` are the buffers'.
std::set<Buffer> scratchBuffers(bilateral::Schedule& schedule,
                                const std::map<Argument, size_t>& sizes) {
  std::set<Buffer> buffers;
  for (int32_t i = 0; i < schedule.count; ++i) {
    auto& arguments = schedule.launches[static_cast<size_t>(i)].arguments;
    for (const auto& [name, bytes] : sizes) {
      const uint64_t value = number(arguments, name);
      if (value >= 0x100000U) {
        buffers.insert({value, bytes});
      }
    }
  }
  return buffers;
}

TEST(scratch_buffers_lie_within_what_was_asked_for_and_do_not_overlap) {
  struct Case {
    SpatialKernel spatial;
    int32_t inputs, features, keys;
    size_t buffers;
  };
  for (const Case& one :
       {Case{SpatialKernel::kNone, 3, 0, 64, 1}, Case{SpatialKernel::kDot, 5, 16, 64, 3},
        Case{SpatialKernel::kGaussian, 6, 2, 64, 1},
        Case{SpatialKernel::kGaussian, 6, 2, 5000, 5}}) {
    Attention attention;
    attention.range = RangeKernel::kGaussian;
    attention.spatial = one.spatial;
    const Operands operands = bilateral::operandsOf(one.spatial, one.inputs);
    const Problem problem{DataType::kHALF, 2, 3, 64, one.keys, 64, one.features};
    FakeTensors fake;
    bilateral::Schedule schedule =
        bilateral::makeSchedule(attention, operands, problem, fake.tensors(), 86);
    const auto keys = static_cast<size_t>(one.keys);
    const size_t tiles = (keys + 31) / 32;
    const std::map<Argument, size_t> sizes{
        {Argument::target, size_t{3} * 64 * 16 * 2},     // H N P, of queries and of keys
        {Argument::key_term, size_t{2} * 3 * keys * 4},  // B H Nk
        {Argument::tile_norm, size_t{2} * 3 * tiles * 4},
        {Argument::tile_term, size_t{2} * 3 * tiles * 4},
        {Argument::tile_boxes, tiles * 2 * 2 * 4},       // least and largest of two coordinates
        {Argument::tile_ranges, size_t{2} * 3 * 2 * 4},  // first and last, for one row of tiles
    };
    const std::set<Buffer> buffers = scratchBuffers(schedule, sizes);
    CHECK_EQUAL(buffers.size(), one.buffers);
    uint64_t end = 0x100000;
    for (const Buffer& buffer : buffers) {
      CHECK(buffer.begin >= end);
      CHECK_EQUAL(buffer.begin % 256, 0U);
      end = buffer.begin + buffer.bytes;
    }
    CHECK(end <= 0x100000 + bilateral::workspaceBytes(attention, operands, problem));
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

}  // namespace
