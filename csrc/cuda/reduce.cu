// Adds the partial sums of a backward kernel's blocks in a fixed order, so that the result is deterministic.
//
//     partials   block 0   | conv1_weight ... | conv1_bias | ...     a row of partial_floats() for each block
//                block 1   | ...
//     a block    adds 32 neighbouring columns. A thread adds every 8th row of one column; then the threads of group 0
//                add the 8 sums of a column
//     bound      memory: each partial sum is read once

#include <cstdint>

#include "cuda/backward/compensated.cuh"
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace wae::cuda {
namespace {

__device__ void write_number(void* data, NumberType type, int i, float value) {
  switch (type) {
    case NumberType::kFloat16:
      static_cast<Float16*>(data)[i] = from_float<Float16>(value);
      break;
    case NumberType::kBFloat16:
      static_cast<BFloat16*>(data)[i] = from_float<BFloat16>(value);
      break;
    case NumberType::kFloat64:
      static_cast<double*>(data)[i] = value;
      break;
    default:
      static_cast<float*>(data)[i] = value;
  }
}

}  // namespace

__global__ void __launch_bounds__(kReduceThreads)
    reduce_partials(const __grid_constant__ ReduceParameters p) {
  constexpr int kGroups = kReduceThreads / kReduceColumns;
  __shared__ float sums[kGroups][kReduceColumns];
  const int column = threadIdx.x % kReduceColumns, group = threadIdx.x / kReduceColumns;
  const int number = blockIdx.x * kReduceColumns + column;
  CompensatedSum sum{};
  if (number < p.partial_floats) {
    for (int block = group; block < p.blocks; block += kGroups) {
      sum.add(p.partials[static_cast<int64_t>(block) * p.partial_floats + number]);
    }
  }
  sums[group][column] = sum.value;
  __syncthreads();
  if (group != 0) return;
  for (int i = 1; i < kGroups; ++i) sum.add(sums[i][column]);
  for (const auto& result : p.results) {
    const int i = number - result.offset;
    if (result.data != nullptr && i >= 0 && i < result.size) {
      write_number(result.data, result.type, i, sum.value);
    }
  }
}

const void* reduce_kernel() { return reinterpret_cast<const void*>(reduce_partials); }

}  // namespace wae::cuda
