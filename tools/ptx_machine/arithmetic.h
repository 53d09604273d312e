// PTX arithmetic that C++ does not have in this form. Registers are unsigned integers. F, D, H and B16 read one
// as float, double, half or bfloat16; R32, R64, half and bfloat write one. F to R64 are macros because kernels
// have thousands of them, and inlining that many functions would take most of g++'s time.
#pragma once
#include <cmath>
#include <limits>

#include "machine.h"

#define F(r) __builtin_bit_cast(float, (u32)(r))
#define D(r) __builtin_bit_cast(double, (u64)(r))
#define R32(x) __builtin_bit_cast(u32, (float)(x))
#define R64(x) __builtin_bit_cast(u64, (double)(x))
inline float H(u16 r) { return static_cast<float>(__builtin_bit_cast(_Float16, r)); }
inline float B16(u16 r) { return F(static_cast<u32>(r) << 16); }

inline u16 half(float x) { return x != x ? 0x7fff : __builtin_bit_cast(u16, static_cast<_Float16>(x)); }
inline u16 half(double x) { return x != x ? 0x7fff : __builtin_bit_cast(u16, static_cast<_Float16>(x)); }
inline u16 half_toward_zero(float x) {
  u16 h = half(x);
  return std::fabs(H(h)) > std::fabs(x) ? h - 1 : h;
}
inline u16 bfloat(float x) {
  u32 b = R32(x);
  return x != x ? 0x7fff : static_cast<u16>((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
inline u16 bfloat_toward_zero(float x) { return x != x ? 0x7fff : static_cast<u16>(R32(x) >> 16); }
inline u16 bfloat(double x) {  // rounds to odd first, so that rounding twice equals rounding once
  float f = static_cast<float>(x);
  if (f != x && f == f && !(R32(f) & 1))
    f = F(R32(f) + (std::fabs(static_cast<double>(f)) < std::fabs(x) ? 1 : -1));
  return bfloat(f);
}
// ptxas makes it of integer instructions, which only cut a NaN off: infinity is left of one with a small payload.
inline u32 tf32_rna(float x) { return (x != x ? R32(x) : R32(x) + 0x1000) & 0xffffe000; }
inline u32 tf32_rn(float x) {
  return x != x ? 0x7fffffff : (R32(x) + 0xfff + (R32(x) >> 13 & 1)) & 0xffffe000;
}

// x + y, rounded in one direction. Neither has to be small: the rounding error of their sum decides on which
// side of it the nearest float lies.
template <int kSign>
float toward(double x, double y = 0) {
  double sum = x + y, part = sum - x, error = (x - (sum - part)) + (y - part);
  float f = static_cast<float>(sum);
  return kSign * ((f - sum) - error) < 0 ? std::nextafter(f, kSign * HUGE_VALF) : f;
}
inline float toward_zero(double x, double y = 0) { return x + y < 0 ? toward<1>(x, y) : toward<-1>(x, y); }

inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }
template <class T>
T saturate(T x) {
  return x > 0 ? (x < 1 ? x : T(1)) : T(0);
}
template <class T>
T relu(T x) {
  return x <= 0 ? T(0) : x;  // keeps NaN, turns -0 into 0
}
template <class T>
T minimum(T a, T b, bool nan = false) {
  if (nan && (a != a || b != b)) return std::numeric_limits<T>::quiet_NaN();
  if (a != a) return b;
  if (a == b && a == 0 && std::signbit(static_cast<double>(a))) return a;
  return b < a ? b : a;
}
template <class T>
T maximum(T a, T b, bool nan = false) {
  return -minimum<T>(-a, -b, nan);
}
template <class T>
T to_integer(double rounded) {  // as in hardware: clamps, and NaN gives 0 (64-bit types: the top bit)
  constexpr T low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  if (rounded != rounded) return sizeof(T) == 8 ? T(1ull << 63) : T(0);
  if (rounded <= static_cast<double>(low)) return low;
  return rounded >= static_cast<double>(high) ? high : static_cast<T>(rounded);
}
template <class T>
T clamp_integer(__int128 x) {
  constexpr __int128 low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  return static_cast<T>(x < low ? low : x > high ? high : x);
}

template <class T>
T shift_left(T a, u32 n) {
  return n < 8 * sizeof(T) ? a << n : 0;
}
template <class T>
T shift_right(T a, u32 n) {
  return n < 8 * sizeof(T) ? a >> n : a >> (8 * sizeof(T) - 1) >> 1;
}
inline u64 funnel(u32 low, u32 high) { return static_cast<u64>(high) << 32 | low; }
template <class T>
T extract_bits(T a, u32 position, u32 length) {
  constexpr u32 width = 8 * sizeof(T);
  position &= 0xff, length &= 0xff;
  if (length == 0) return 0;
  bool is_signed = T(-1) < T(0);
  u32 top = position + length - 1 < width ? position + length - 1 : width - 1;
  u64 fill = is_signed && (static_cast<u64>(a) >> top & 1) ? ~0ull : 0;
  u64 field = position < width ? static_cast<u64>(a) >> position : fill;
  u32 valid = position < width ? top - position + 1 : 0;
  if (length > valid && valid < 64) field = (field & ((1ull << valid) - 1)) | fill << valid;
  u64 keep = length < 64 ? (1ull << length) - 1 : ~0ull;
  return static_cast<T>((field & keep) | (fill & ~keep));
}
template <class T>
T insert_bits(T a, T b, u32 position, u32 length) {
  position &= 0xff, length &= 0xff;
  if (position >= 8 * sizeof(T)) return b;
  T keep = length < 8 * sizeof(T) ? (T(1) << length) - 1 : ~T(0);
  return (b & ~(keep << position)) | (a & keep) << position;
}
template <class T>
u32 find_top_bit(T a) {
  u64 x = a < 0 ? ~static_cast<s64>(a) : static_cast<s64>(a);
  if (T(-1) > T(0)) x = static_cast<u64>(a);
  return x ? 63 - __builtin_clzll(x) : ~0u;
}
inline u32 reverse_bits(u32 x) {
  u32 r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline u32 permute_bytes(u32 a, u32 b, u32 selector) {
  u64 source = funnel(a, b);
  u32 r = 0;
  for (int i = 0; i < 4; i++) {
    u32 pick = selector >> (4 * i) & 0xf;
    u32 byte = source >> (8 * (pick & 7)) & 0xff;
    r |= (pick & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
  }
  return r;
}
inline u32 logic3(u32 a, u32 b, u32 c, u32 table) {
  u32 r = 0;
  for (u32 i = 0; i < 8; i++)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
