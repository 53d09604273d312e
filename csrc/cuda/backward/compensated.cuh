// Sums whose error does not grow with their length.

#pragma once

namespace wae::cuda {

// Kahan's sum: what an addition rounds is taken off the next number. Equal numbers are all rounded the same
// way, so a float loses digits with the count of its additions; this one keeps all but the last bit, for three
// additions more a number. nvcc reassociates no sums: nothing here is compiled with --use_fast_math.
struct CompensatedSum {
  float value, excess;  // excess: how much too large `value` is

  __device__ __forceinline__ void add(float number) {
    const float next = number - excess, sum = value + next;
    excess = (sum - value) - next;
    value = sum;
  }
};

}  // namespace wae::cuda
