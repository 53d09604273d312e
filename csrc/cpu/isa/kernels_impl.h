#pragma once

// The body of kernels_<isa>.cpp: everything below is compiled once for each instruction set, in its own namespace. The
// including file has set WAE_ISA and the compiler's target.

#include "cpu/isa/conv3x3.h"
#include "cpu/isa/decode.h"
#include "cpu/isa/decode_backward.h"
#include "cpu/isa/decode_scores.h"
#include "cpu/isa/decode_scores_backward.h"
#include "cpu/isa/encode.h"
#include "cpu/isa/encode_backward.h"

namespace wae::WAE_ISA {

const Kernels& kernels() {
  static constexpr Kernels functions{
      encode, decode, decode_scores, encode_backward, decode_backward, decode_scores_backward, conv3x3};
  return functions;
}

}  // namespace wae::WAE_ISA
