// A sum whose error does not grow with the number of its terms.

#pragma once

namespace wae::cuda {

// Kahan summation: the rounding error of an addition is subtracted from the next number. Equal numbers are all rounded
// in the same direction, so a plain float sum loses digits as the number of additions grows; this one is exact up to
// the last bit, for three more additions per number. nvcc does not reassociate the sums, because nothing is compiled
// with --use_fast_math.
struct CompensatedSum {
  float value, excess;  // excess: by how much `value` is too large

  __device__ __forceinline__ void add(float number) {
    const float next = number - excess, sum = value + next;
    excess = (sum - value) - next;
    value = sum;
  }
};

}  // namespace wae::cuda
