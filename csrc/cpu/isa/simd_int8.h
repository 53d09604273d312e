// Vectors of bytes for one instruction set with VNNI, chosen by the including file (WAE_AVX512 or WAE_AVX2).
//
// A lane has 32 bits: 4 channels of a pixel, or a sum.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/isa/simd.h"

namespace wae::WAE_ISA {

WAE_INLINE int32_t read_lane(const void* p) {
  int32_t lane;
  std::memcpy(&lane, p, sizeof lane);
  return lane;
}

#if defined(WAE_AVX512)

using Bytes = __m512i;
using Mask = __mmask16;
// The number of output channels whose sums for two vectors of columns stay in registers.
inline constexpr int kOuts = 8;

WAE_INLINE Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
WAE_INLINE void store_bytes(void* p, Bytes v) { _mm512_storeu_si512(p, v); }
WAE_INLINE void store_bytes(void* p, Mask mask, Bytes v) { _mm512_mask_storeu_epi32(p, mask, v); }
WAE_INLINE Bytes broadcast_lane(int32_t lane) { return _mm512_set1_epi32(lane); }
// A mask of the first `count` lanes; empty if that is negative.
WAE_INLINE Mask first_lanes(int64_t count) {
  return count >= 16 ? 0xFFFF : count > 0 ? static_cast<Mask>((1 << count) - 1) : 0;
}

// sum + the 4 products of each lane, without saturation.
WAE_INLINE Bytes dot(Bytes sum, Bytes pixels, Bytes weights) {
  return _mm512_dpbusd_epi32(sum, pixels, weights);
}

// Requantizes 4 vectors of sums to one vector with 4 bytes a lane: shifted, saturated to 16 bits, multiplied by
// multiplier / 2^15 and rounded, saturated to 8 bits.
WAE_INLINE Bytes requantize(const Bytes sum[4], const int32_t shift[4], const int16_t multiplier[2][8]) {
  const auto words = [&](int i) {
    const Bytes low = _mm512_srav_epi32(sum[i], broadcast_lane(shift[i]));
    const Bytes high = _mm512_srav_epi32(sum[i + 1], broadcast_lane(shift[i + 1]));
    const __m128i factors = _mm_load_si128(reinterpret_cast<const __m128i*>(multiplier[i / 2]));
    return _mm512_mulhrs_epi16(_mm512_packs_epi32(low, high), _mm512_broadcast_i32x4(factors));
  };
  const __m128i by_lane = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(_mm512_packus_epi16(words(0), words(2)), _mm512_broadcast_i32x4(by_lane));
}

WAE_INLINE Vec to_floats(Bytes sum) { return _mm512_cvtepi32_ps(sum); }
// Rounds to the nearest integer, ties to even, adds `zero_point` and clamps to the range from `least` to least + 255.
WAE_INLINE Vec to_bytes(Vec v, float zero_point, float least) {
  const Vec rounded =
      _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) + broadcast(zero_point);
  return _mm512_min_ps(_mm512_max_ps(rounded, broadcast(least)), broadcast(least + 255));
}

#else

using Bytes = __m256i;
using Mask = __m256i;
inline constexpr int kOuts = 4;

WAE_INLINE Bytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
WAE_INLINE void store_bytes(void* p, Bytes v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
WAE_INLINE void store_bytes(void* p, Mask mask, Bytes v) {
  _mm256_maskstore_epi32(static_cast<int*>(p), mask, v);
}
WAE_INLINE Bytes broadcast_lane(int32_t lane) { return _mm256_set1_epi32(lane); }
WAE_INLINE Mask first_lanes(int64_t count) {
  const int lanes = static_cast<int>(count < 8 ? count : 8);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
WAE_INLINE Bytes dot(Bytes sum, Bytes pixels, Bytes weights) {
  return _mm256_dpbusd_avx_epi32(sum, pixels, weights);
}
WAE_INLINE Bytes requantize(const Bytes sum[4], const int32_t shift[4], const int16_t multiplier[2][8]) {
  const auto words = [&](int i) {
    const Bytes low = _mm256_srav_epi32(sum[i], broadcast_lane(shift[i]));
    const Bytes high = _mm256_srav_epi32(sum[i + 1], broadcast_lane(shift[i + 1]));
    const __m128i factors = _mm_load_si128(reinterpret_cast<const __m128i*>(multiplier[i / 2]));
    return _mm256_mulhrs_epi16(_mm256_packs_epi32(low, high), _mm256_broadcastsi128_si256(factors));
  };
  const __m128i by_lane = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm256_shuffle_epi8(_mm256_packus_epi16(words(0), words(2)), _mm256_broadcastsi128_si256(by_lane));
}

WAE_INLINE Vec to_floats(Bytes sum) { return _mm256_cvtepi32_ps(sum); }
WAE_INLINE Vec to_bytes(Vec v, float zero_point, float least) {
  const Vec rounded =
      _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) + broadcast(zero_point);
  return _mm256_min_ps(_mm256_max_ps(rounded, broadcast(least)), broadcast(least + 255));
}

#endif

static_assert(sizeof(Bytes) == kLanes * sizeof(int32_t));

}  // namespace wae::WAE_ISA
