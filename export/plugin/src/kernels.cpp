#include "kernels.h"

#include <algorithm>
#include <set>

namespace bilateral {
namespace {

bool runsOn(const Kernel& kernel, int32_t computeCapability) {
  const int32_t* end = kernel.runsOn + kernel.numRunsOn;
  return std::find(kernel.runsOn, end, computeCapability) != end;
}

bool serves(const Kernel& kernel, const KernelQuery& query) {
  const bool sameBlocks = (query.blockM == 0 || kernel.blockM == query.blockM) &&
                          (query.blockN == 0 || kernel.blockN == query.blockN);
  if (kernel.role != query.role || kernel.type != query.type || !sameBlocks ||
      !runsOn(kernel, query.computeCapability) || kernel.headDim < query.headDim) {
    return false;
  }
  if (kernel.role == Role::kPlan) {
    return kernel.coordinates == query.coordinates;
  }
  if (kernel.role != Role::kAttention) {
    return true;
  }
  return kernel.spatial == query.spatial && kernel.keyTerm == query.keyTerm &&
         kernel.coordinates == query.coordinates && kernel.features >= query.features;
}

std::vector<int32_t> collect() {
  std::set<int32_t> found;
  for (int32_t i = 0; i < kNumKernels; ++i) {
    const Kernel& kernel = kKernels[i];
    if (kernel.role == Role::kAttention) {
      found.insert(kernel.runsOn, kernel.runsOn + kernel.numRunsOn);
    }
  }
  return {found.begin(), found.end()};
}

}  // namespace

const Kernel* findKernel(const KernelQuery& query) {
  const Kernel* best = nullptr;
  for (int32_t i = 0; i < kNumKernels; ++i) {
    const Kernel& kernel = kKernels[i];
    if (serves(kernel, query) &&
        (best == nullptr || kernel.headDim < best->headDim ||
         (kernel.headDim == best->headDim && kernel.features < best->features))) {
      best = &kernel;
    }
  }
  return best;
}

const std::vector<int32_t>& computeCapabilities() {
  static const std::vector<int32_t> found = collect();
  return found;
}

}  // namespace bilateral
