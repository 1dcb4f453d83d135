// The kernels embedded in this library: what each was compiled for, and its machine code. The table
// is generated from the kernel compiler's manifest (cmake/embed_cubins.py).
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <vector>

#include "attention.h"

namespace bilateral {

// The launch ABI this library speaks: export/bilateral_export/op/kernel/README.md.
inline constexpr int32_t kKernelAbi = 1;

enum class Role : uint8_t { kAttention, kKeyTiles, kPlan, kFeatures };

// Every argument of every kernel, by the name it has in the ABI. Each kernel lists its own in
// order, so that a launch is filled in by name; a name unknown here fails the build of the table.
enum class Argument : uint8_t {
  query,
  key,
  value,
  output,
  query_positions,
  key_positions,
  bandwidth,
  key_bias,
  key_term,
  tile_norm,
  tile_term,
  tile_boxes,
  tile_ranges,
  source,
  target,
  stride_qb,
  stride_qh,
  stride_qn,
  stride_kb,
  stride_kh,
  stride_kn,
  stride_vb,
  stride_vh,
  stride_vn,
  stride_ob,
  stride_oh,
  stride_on,
  stride_tb,
  stride_th,
  stride_bias,
  heads,
  n_query,
  n_key,
  n_tokens,
  head_dim,
  n_features,
  query_prefix,
  key_prefix,
  prefix,
  diagonal,
  has_ranges,
  gaussian_range,
  has_bias,
  coordinates,
  scale,
  budget,
  largest,
  global_scratch,  // Triton's buffers, which these kernels do not use: null
  profile_scratch,
  kCount,
};

struct Kernel {
  Role role;
  nvinfer1::DataType type;
  SpatialKernel spatial;
  bool keyTerm;
  int32_t headDim;      // a class: D is at most this; 0 where it does not matter
  int32_t coordinates;  // C exactly; 0 where it does not matter
  int32_t features;     // a class: P is at most this; 0 where it does not matter
  int32_t blockM;
  int32_t blockN;
  uint32_t threads;
  uint32_t sharedBytes;
  const char* symbol;
  const uint8_t* cubin;
  const int32_t* runsOn;  // compute capabilities such as 90
  int32_t numRunsOn;
  const Argument* arguments;
  int32_t numArguments;
};

// The generated table.
extern const Kernel* const kKernels;
extern const int32_t kNumKernels;
// What `bilateralPluginContents` returns: JSON.
extern const char* const kContents;

// A row of the table, or nullptr.
struct KernelQuery {
  Role role = Role::kAttention;
  int32_t computeCapability = 0;
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
  SpatialKernel spatial = SpatialKernel::kNone;
  bool keyTerm = false;
  int32_t headDim = 0;
  int32_t coordinates = 0;
  int32_t features = 0;
  int32_t blockM = 0;  // 0 for any
  int32_t blockN = 0;
};
const Kernel* findKernel(const KernelQuery& query);

// The compute capabilities the table has attention kernels for, each once, ascending.
const std::vector<int32_t>& computeCapabilities();

}  // namespace bilateral
