// Warp instructions. Each is executed once, when all lanes of the mask have arrived. Fragment layouts are those of
// the PTX manual: element (row, column) of a fragment is in lane row % 8 * 4 + column / (elements per register).
#include "warp.h"

#include <algorithm>

#include "arithmetic.h"
#include "machine_state.h"

namespace {

u32* operands(Warp& w, u32 lane) { return static_cast<u32*>(w.operands[lane]); }

// What .aligned instructions need.
void need_full_warp(Warp& w, u32 mask, u32 site, const char* what) {
  if (mask != ~0u)
    fail(*w.thread(__builtin_ctz(mask)), site, "%s needs all 32 lanes, got 0x%08x", what, mask);
  for (u32 lane = 1; lane < 32; lane++) need_one_path(*w.thread(lane), *w.thread(0), site);
}

// Calls access(lane, address) for each row. Lanes 8m..8m+7 have the addresses of the rows of matrix m.
template <class Access>
void matrix_rows(Warp& w, u32 count, bool writes, Access access) {
  Launch& l = *w.block->launch;
  for (u32 m = 0; m < count; m++) {
    u32 addresses[8];
    for (u32 r = 0; r < 8; r++) {
      u32 lane = 8 * m + r;
      addresses[r] = operands(w, lane)[0];
      access(lane, addresses[r]);
    }
    l.shared_wavefronts += wavefronts(addresses, 8, 16);
    l.shared_ideal_wavefronts++;
    (writes ? l.shared_written_bytes : l.shared_read_bytes) += 128;
  }
}

template <u32 kCount, bool kTransposed>
void load_matrix(Warp& w, u32 mask, u32 site) {
  need_full_warp(w, mask, site, "ldmatrix");
  const u8* rows[32];
  matrix_rows(w, kCount, false, [&](u32 lane, u32 address) {
    rows[lane] = shared_collective_read(*w.thread(lane), address, 16, site);
  });
  if (w.block->launch->target <= 75)  // these need valid addresses from all lanes
    for (u32 lane = 8 * kCount; lane < 32; lane++) need_row(*w.thread(lane), operands(w, lane)[0], site);
  for (u32 lane = 0; lane < 32; lane++)
    for (u32 m = 0; m < kCount; m++) {
      u32 value = 0;
      for (u32 e = 0; e < 2; e++) {
        u32 major = lane / 4, minor = lane % 4 * 2 + e;
        u16 x =
            kTransposed ? get<u16>(rows[8 * m + minor], 2 * major) : get<u16>(rows[8 * m + major], 2 * minor);
        value |= static_cast<u32>(x) << (16 * e);
      }
      operands(w, lane)[m] = value;
    }
}

// Operands of a lane: the address of a row, then its two elements of each matrix.
template <u32 kCount, bool kTransposed>
void store_matrix(Warp& w, u32 mask, u32 site) {
  need_full_warp(w, mask, site, "stmatrix");
  matrix_rows(w, kCount, true, [&](u32 lane, u32 address) {
    u32 m = lane / 8, r = lane % 8;
    u16 row[8];
    for (u32 c = 0; c < 8; c++) {
      u32 major = kTransposed ? c : r, minor = kTransposed ? r : c;
      row[c] = operands(w, major * 4 + minor / 2)[1 + m] >> (16 * (minor % 2));
    }
    shared_collective_write(*w.thread(lane), address, row, sizeof row, site);
  });
}

struct Half {
  static constexpr u32 kPerRegister = 2;
  static float element(u32 r, u32 e) { return H(r >> (16 * e)); }
};
struct Bfloat {
  static constexpr u32 kPerRegister = 2;
  static float element(u32 r, u32 e) { return B16(r >> (16 * e)); }
};
struct Tf32 {
  static constexpr u32 kPerRegister = 1;
  static float element(u32 r, u32) { return F(r & 0xffffe000); }  // the hardware ignores the low 13 bits
};

// D = A x B + C, m16n8 and kK deep. Operands of a lane: the registers of A, B and C; D replaces C. Products are
// exact in float32; the sum is rounded to float32 after each step. (Hardware truncates, which is a little worse.)
template <u32 kK, class T, bool kHalfSums>
void mma(Warp& w, u32 mask, u32 site) {
  need_full_warp(w, mask, site, "mma.sync");
  constexpr u32 kE = T::kPerRegister, kA = 16 * kK / 32 / kE, kB = 8 * kK / 32 / kE, kC = kHalfSums ? 2 : 4;
  float a[16][kK], b[kK][8], c[16][8];
  auto each_sum = [&](auto act) {
    for (u32 lane = 0; lane < 32; lane++)
      for (u32 i = 0; i < 4; i++)
        act(operands(w, lane) + kA + kB, i, c[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2]);
  };
  for (u32 lane = 0; lane < 32; lane++) {
    const u32* r = operands(w, lane);
    u32 group = lane / 4, inner = lane % 4 * kE;
    for (u32 e = 0; e < kE; e++) {
      for (u32 i = 0; i < kA; i++) a[group + 8 * (i % 2)][inner + e + 4 * kE * (i / 2)] = T::element(r[i], e);
      for (u32 i = 0; i < kB; i++) b[inner + e + 4 * kE * i][group] = T::element(r[kA + i], e);
    }
  }
  each_sum(
      [](const u32* r, u32 i, float& x) { x = kHalfSums ? H(r[i / 2] >> (16 * (i % 2))) : F(r[i % kC]); });
  for (u32 i = 0; i < 16; i++)
    for (u32 k = 0; k < kK; k++)
      for (u32 j = 0; j < 8; j++) c[i][j] += a[i][k] * b[k][j];
  each_sum([](u32* r, u32 i, float& x) {
    if (kHalfSums)
      put<u16>(r, 2 * i, half(x));
    else
      r[i] = R32(x);
  });
}

}  // namespace

#define MMA(name, ...) \
  void name(Warp& w, u32 mask, u32 site) { mma<__VA_ARGS__>(w, mask, site); }
MMA(mma_m16n8k8_f32_f16, 8, Half, false)
MMA(mma_m16n8k16_f32_f16, 16, Half, false)
MMA(mma_m16n8k8_f16_f16, 8, Half, true)
MMA(mma_m16n8k16_f16_f16, 16, Half, true)
MMA(mma_m16n8k8_f32_bf16, 8, Bfloat, false)
MMA(mma_m16n8k16_f32_bf16, 16, Bfloat, false)
MMA(mma_m16n8k4_f32_tf32, 4, Tf32, false)
MMA(mma_m16n8k8_f32_tf32, 8, Tf32, false)

#define MATRICES(count)                                                                                    \
  void ldmatrix_x##count(Warp& w, u32 mask, u32 site) { load_matrix<count, false>(w, mask, site); }        \
  void ldmatrix_x##count##_trans(Warp& w, u32 mask, u32 site) { load_matrix<count, true>(w, mask, site); } \
  void stmatrix_x##count(Warp& w, u32 mask, u32 site) { store_matrix<count, false>(w, mask, site); }       \
  void stmatrix_x##count##_trans(Warp& w, u32 mask, u32 site) { store_matrix<count, true>(w, mask, site); }
MATRICES(1)
MATRICES(2)
MATRICES(4)

void movmatrix_trans(Warp& w, u32 mask, u32 site) {
  need_full_warp(w, mask, site, "movmatrix");
  u16 x[8][8];
  for (u32 lane = 0; lane < 32; lane++)
    for (u32 e = 0; e < 2; e++) x[lane / 4][lane % 4 * 2 + e] = *operands(w, lane) >> (16 * e);
  for (u32 lane = 0; lane < 32; lane++)
    for (u32 e = 0; e < 2; e++) put<u16>(operands(w, lane), 2 * e, x[lane % 4 * 2 + e][lane / 4]);
}

// Operands: value, b (lane or distance), c (clamp and segment). Results: value, predicate.
enum class Shuffle { up, down, butterfly, index };
template <Shuffle kMode>
static void shuffle(Warp& w, u32 mask) {
  u32 values[32];
  for (u32 lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) values[lane] = operands(w, lane)[0];
  for (u32 lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    u32* r = operands(w, lane);
    u32 b = r[1] & 31, clamp = r[2] & 31, segment = r[2] >> 8 & 31;
    s32 limit = (lane & segment) | (clamp & ~segment), from;
    if (kMode == Shuffle::up) from = s32(lane) - s32(b);
    if (kMode == Shuffle::down) from = lane + b;
    if (kMode == Shuffle::butterfly) from = lane ^ b;
    if (kMode == Shuffle::index) from = (lane & segment) | (b & ~segment);
    bool inside = kMode == Shuffle::up ? from >= limit : from <= limit;
    if (!inside) from = lane;
    r[0] = mask >> from & 1 ? values[from] : ~0u;  // a lane outside the mask has no value: NaN shows it
    r[1] = inside;
  }
}
void shfl_up(Warp& w, u32 mask, u32) { shuffle<Shuffle::up>(w, mask); }
void shfl_down(Warp& w, u32 mask, u32) { shuffle<Shuffle::down>(w, mask); }
void shfl_bfly(Warp& w, u32 mask, u32) { shuffle<Shuffle::butterfly>(w, mask); }
void shfl_idx(Warp& w, u32 mask, u32) { shuffle<Shuffle::index>(w, mask); }

template <class Value>
static void give_all(Warp& w, u32 mask, Value value) {
  for (u32 lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) operands(w, lane)[0] = value(lane);
}
static u32 ballot(Warp& w, u32 mask) {
  u32 votes = 0;
  for (u32 lane = 0; lane < 32; lane++)
    if (mask >> lane & 1 && operands(w, lane)[0]) votes |= 1u << lane;
  return votes;
}
void vote_ballot(Warp& w, u32 mask, u32) {
  u32 votes = ballot(w, mask);
  give_all(w, mask, [&](u32) { return votes; });
}
void vote_all(Warp& w, u32 mask, u32) {
  u32 votes = ballot(w, mask);
  give_all(w, mask, [&](u32) { return votes == mask; });
}
void vote_any(Warp& w, u32 mask, u32) {
  u32 votes = ballot(w, mask);
  give_all(w, mask, [&](u32) { return votes != 0; });
}
void vote_uni(Warp& w, u32 mask, u32) {
  u32 votes = ballot(w, mask);
  give_all(w, mask, [&](u32) { return votes == mask || votes == 0; });
}
void match_any(Warp& w, u32 mask, u32) {
  u32 same[32] = {};
  for (u32 lane = 0; lane < 32; lane++)
    for (u32 other = 0; other < 32; other++)
      if ((mask >> lane & mask >> other & 1) && operands(w, lane)[0] == operands(w, other)[0])
        same[lane] |= 1u << other;
  give_all(w, mask, [&](u32 lane) { return same[lane]; });
}

template <class T, class Op>
static void reduce(Warp& w, u32 mask, Op op) {
  u32 first = __builtin_ctz(mask);
  T total = operands(w, first)[0];
  for (u32 lane = first + 1; lane < 32; lane++)
    if (mask >> lane & 1) total = op(total, T(operands(w, lane)[0]));
  give_all(w, mask, [&](u32) { return u32(total); });
}
void redux_add(Warp& w, u32 mask, u32) {
  reduce<u32>(w, mask, [](u32 a, u32 b) { return a + b; });
}
void redux_and(Warp& w, u32 mask, u32) {
  reduce<u32>(w, mask, [](u32 a, u32 b) { return a & b; });
}
void redux_or(Warp& w, u32 mask, u32) {
  reduce<u32>(w, mask, [](u32 a, u32 b) { return a | b; });
}
void redux_xor(Warp& w, u32 mask, u32) {
  reduce<u32>(w, mask, [](u32 a, u32 b) { return a ^ b; });
}
void redux_min_u32(Warp& w, u32 mask, u32) {
  reduce<u32>(w, mask, [](u32 a, u32 b) { return std::min(a, b); });
}
void redux_max_u32(Warp& w, u32 mask, u32) {
  reduce<u32>(w, mask, [](u32 a, u32 b) { return std::max(a, b); });
}
void redux_min_s32(Warp& w, u32 mask, u32) {
  reduce<s32>(w, mask, [](s32 a, s32 b) { return std::min(a, b); });
}
void redux_max_s32(Warp& w, u32 mask, u32) {
  reduce<s32>(w, mask, [](s32 a, s32 b) { return std::max(a, b); });
}
