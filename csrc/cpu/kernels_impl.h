#pragma once

// The body of kernels_<isa>.cpp: everything below is compiled once for every instruction set, in a
// namespace of its own. The including file has set WAE_ISA and the compiler's target.

#include "conv3x3.h"
#include "decode.h"
#include "decode_backward.h"
#include "encode.h"
#include "encode_backward.h"

namespace wae::WAE_ISA {

const Kernels& kernels() {
  static constexpr Kernels table{encode, decode, encode_backward, decode_backward, conv3x3};
  return table;
}

}  // namespace wae::WAE_ISA
