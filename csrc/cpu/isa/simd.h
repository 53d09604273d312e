// Vectors of float for one instruction set, chosen by the including file (WAE_AVX512, WAE_AVX2, or neither).
//
// `Vec` is a compiler vector type, so + - * work on it; this header adds the other operations. The 16 channels of a
// pixel are kVecs vectors. keep(v) makes the compiler keep v in a register: GCC would repeat the load for each use of
// it.
//
// No value that is not finite ever becomes a finite number. A sum that overflowed may be infinite although the exact
// sum is not, so relu maps both infinities to NaN: v - v is 0 if v is finite and NaN if not, and max returns its second
// argument if either is NaN. relu_backward is `output <= 0 ? 0 : gradient`, and NaN where the output is NaN.

#pragma once

#if defined(WAE_AVX512) && !defined(__clang__)
// GCC 12 warns of an uninitialized variable in its own definitions of many AVX-512 intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(WAE_AVX512) || defined(WAE_AVX2)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#define WAE_INLINE inline __attribute__((always_inline))
#define WAE_NOINLINE inline __attribute__((noinline))

namespace wae::WAE_ISA {

#if defined(WAE_AVX512)

using Vec = __m512;
inline constexpr int kLanes = 16;
// The number of pixels whose 16 sums stay in registers: 14 of the 32, and 14 divides 56 tiles.
inline constexpr int kBlock = 14;

WAE_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
WAE_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
WAE_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
WAE_INLINE Vec zero() { return _mm512_setzero_ps(); }
WAE_INLINE void keep(Vec& v) { __asm__("" : "+v"(v)); }
WAE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
WAE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
WAE_INLINE Vec relu(Vec v) { return _mm512_max_ps(v, v - v); }
WAE_INLINE Vec relu_backward(Vec output, Vec gradient) {
  return _mm512_maskz_fmadd_ps(_mm512_cmp_ps_mask(output, zero(), _CMP_NLE_UQ), output, zero(), gradient);
}
// p[0..3] = the sums over all lanes of v[0..3]
WAE_INLINE void store_sums4(float* p, const Vec v[4]) {
  const Vec t0 = _mm512_unpacklo_ps(v[0], v[1]) + _mm512_unpackhi_ps(v[0], v[1]);
  const Vec t1 = _mm512_unpacklo_ps(v[2], v[3]) + _mm512_unpackhi_ps(v[2], v[3]);
  const Vec u = _mm512_shuffle_ps(t0, t1, 0x44) + _mm512_shuffle_ps(t0, t1, 0xEE);
  const __m256 half = _mm512_castps512_ps256(u) + _mm512_castps512_ps256(_mm512_shuffle_f32x4(u, u, 0x0E));
  _mm_storeu_ps(p, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}
// p[lane * stride + 0..3] = v[0..3][lane]
WAE_INLINE void store_transposed4(float* p, int64_t stride, const Vec v[4]) {
  const Vec lo01 = _mm512_unpacklo_ps(v[0], v[1]), hi01 = _mm512_unpackhi_ps(v[0], v[1]);
  const Vec lo23 = _mm512_unpacklo_ps(v[2], v[3]), hi23 = _mm512_unpackhi_ps(v[2], v[3]);
  const Vec t[4] = {_mm512_shuffle_ps(lo01, lo23, 0x44), _mm512_shuffle_ps(lo01, lo23, 0xEE),
                    _mm512_shuffle_ps(hi01, hi23, 0x44), _mm512_shuffle_ps(hi01, hi23, 0xEE)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // t[i] has lanes i, 4 + i, 8 + i and 12 + i of v[0..3], 128 bits each
    _mm_storeu_ps(p + i * stride, _mm512_castps512_ps128(t[i]));
    _mm_storeu_ps(p + (4 + i) * stride, _mm512_extractf32x4_ps(t[i], 1));
    _mm_storeu_ps(p + (8 + i) * stride, _mm512_extractf32x4_ps(t[i], 2));
    _mm_storeu_ps(p + (12 + i) * stride, _mm512_extractf32x4_ps(t[i], 3));
  }
}

#elif defined(WAE_AVX2)

using Vec = __m256;
inline constexpr int kLanes = 8;
// 6 pixels x 2 vectors of sums, 2 of weights, 1 broadcast: 15 of 16 registers.
inline constexpr int kBlock = 6;

WAE_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
WAE_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
WAE_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
WAE_INLINE Vec zero() { return _mm256_setzero_ps(); }
WAE_INLINE void keep(Vec& v) { __asm__("" : "+x"(v)); }
WAE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
WAE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
WAE_INLINE Vec relu(Vec v) { return _mm256_max_ps(v, v - v); }
WAE_INLINE Vec relu_backward(Vec output, Vec gradient) {
  return _mm256_and_ps(_mm256_cmp_ps(output, zero(), _CMP_NLE_UQ), fma(output, zero(), gradient));
}
WAE_INLINE void store_sums4(float* p, const Vec v[4]) {
  const Vec t0 = _mm256_unpacklo_ps(v[0], v[1]) + _mm256_unpackhi_ps(v[0], v[1]);
  const Vec t1 = _mm256_unpacklo_ps(v[2], v[3]) + _mm256_unpackhi_ps(v[2], v[3]);
  const Vec u = _mm256_shuffle_ps(t0, t1, 0x44) + _mm256_shuffle_ps(t0, t1, 0xEE);
  _mm_storeu_ps(p, _mm256_castps256_ps128(u) + _mm256_extractf128_ps(u, 1));
}
WAE_INLINE void store_transposed4(float* p, int64_t stride, const Vec v[4]) {
  const Vec lo01 = _mm256_unpacklo_ps(v[0], v[1]), hi01 = _mm256_unpackhi_ps(v[0], v[1]);
  const Vec lo23 = _mm256_unpacklo_ps(v[2], v[3]), hi23 = _mm256_unpackhi_ps(v[2], v[3]);
  const Vec t[4] = {_mm256_shuffle_ps(lo01, lo23, 0x44), _mm256_shuffle_ps(lo01, lo23, 0xEE),
                    _mm256_shuffle_ps(hi01, hi23, 0x44), _mm256_shuffle_ps(hi01, hi23, 0xEE)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_ps(p + i * stride, _mm256_castps256_ps128(t[i]));
    _mm_storeu_ps(p + (4 + i) * stride, _mm256_extractf128_ps(t[i], 1));
  }
}

#else  // compiler vectors of 16 bytes, which all current CPUs have

typedef float Vec __attribute__((vector_size(16)));
typedef int Mask __attribute__((vector_size(16)));
inline constexpr int kLanes = 4;
// 3 pixels x 4 vectors of sums.
inline constexpr int kBlock = 3;

WAE_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
WAE_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
WAE_INLINE Vec broadcast(float x) { return Vec{x, x, x, x}; }
WAE_INLINE Vec zero() { return Vec{}; }
WAE_INLINE void keep(Vec&) {}
WAE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
WAE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return c - a * b; }
WAE_INLINE Vec relu(Vec v) {
  const Vec zero_or_nan = v - v;
  return v > zero_or_nan ? v : zero_or_nan;
}
WAE_INLINE Vec relu_backward(Vec output, Vec gradient) {
  const Mask bits = ~(output <= zero()) & reinterpret_cast<Mask>(fma(output, zero(), gradient));
  return reinterpret_cast<Vec>(bits);
}
WAE_INLINE void store_sums4(float* p, const Vec v[4]) {
  for (int i = 0; i < 4; ++i) p[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
}
WAE_INLINE void store_transposed4(float* p, int64_t stride, const Vec v[4]) {
  for (int i = 0; i < 4; ++i) store(p + i * stride, Vec{v[0][i], v[1][i], v[2][i], v[3][i]});
}

#endif

inline constexpr int kChannels = 16;
inline constexpr int kVecs = kChannels / kLanes;
static_assert(kVecs * kLanes == kChannels);

}  // namespace wae::WAE_ISA
