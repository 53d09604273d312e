// Conversions between the element types of images and float.
//
// These functions have internal linkage: each kernel file compiles them for its own instruction set, and the linker
// must not use them for another file.

#pragma once

#include <bit>
#include <cstdint>

#include "cpu/kernels.h"

namespace wae {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(uint8_t x) { return x; }
inline float to_float(int8_t x) { return x; }
inline float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_float(Half x) {
  // Shift exponent and mantissa into place, and correct the exponent's bias. No float here is subnormal, because such
  // floats are zero after torch.set_flush_denormal(True): a subnormal number is computed as 2^-14 more, minus 2^-14.
  // There are no branches, with which GCC 12 would not vectorize loops for AVX2.
  const uint32_t magnitude = x.bits & 0x7FFFu;
  const uint32_t is_subnormal = magnitude < 0x0400u, is_not_finite = magnitude >= 0x7C00u;
  const uint32_t bits = (magnitude << 13) + ((112 + is_subnormal + 112 * is_not_finite) << 23);
  const float value = std::bit_cast<float>(bits) - std::bit_cast<float>(is_subnormal * 0x38800000u);  // 2^-14
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | uint32_t{x.bits & 0x8000u} << 16);
}

inline void from_float(float x, float& out) { out = x; }
inline void from_float(float x, uint8_t& out) { out = static_cast<uint8_t>(x); }  // x is in 0..255
inline void from_float(float x, int8_t& out) { out = static_cast<int8_t>(x); }    // x is in -128..127
inline void from_float(float x, BFloat16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  out.bits = static_cast<uint16_t>(x == x ? rounded : (bits >> 16) | 0x40u);
}
inline void from_float(float x, Half& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000u,
                 magnitude = bits & 0x7FFFFFFFu;
  uint32_t result;
  if (magnitude > 0x7F800000u) {
    result = 0x7E00u;  // NaN
  } else if (magnitude >= 0x477FF000u) {
    result = 0x7C00u;                    // rounds to infinity
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at the right bit
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    result = std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5f);
  } else {
    result = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | result);
}

// Element `index` of an array.
inline float read_float(const void* data, Element element, int64_t index) {
  switch (element) {
    case Element::kFloat16:
      return to_float(static_cast<const Half*>(data)[index]);
    case Element::kBFloat16:
      return to_float(static_cast<const BFloat16*>(data)[index]);
    case Element::kUInt8:
      return to_float(static_cast<const uint8_t*>(data)[index]);
    case Element::kInt8:
      return to_float(static_cast<const int8_t*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

inline void write_float(void* data, Element element, int64_t index, float x) {
  switch (element) {
    case Element::kFloat16:
      return from_float(x, static_cast<Half*>(data)[index]);
    case Element::kBFloat16:
      return from_float(x, static_cast<BFloat16*>(data)[index]);
    case Element::kUInt8:
      return from_float(x, static_cast<uint8_t*>(data)[index]);
    case Element::kInt8:
      return from_float(x, static_cast<int8_t*>(data)[index]);
    default:
      return from_float(x, static_cast<float*>(data)[index]);
  }
}

}  // namespace
}  // namespace wae
