// The warp instructions, executed by warp.cpp. Operands and results are one u32 array per lane.
#pragma once
#include "machine.h"

void ldmatrix_x1(Warp&, u32 mask, u32 site);
void ldmatrix_x1_trans(Warp&, u32 mask, u32 site);
void ldmatrix_x2(Warp&, u32 mask, u32 site);
void ldmatrix_x2_trans(Warp&, u32 mask, u32 site);
void ldmatrix_x4(Warp&, u32 mask, u32 site);
void ldmatrix_x4_trans(Warp&, u32 mask, u32 site);
void match_any(Warp&, u32 mask, u32 site);
void mma_m16n8k16_f16_f16(Warp&, u32 mask, u32 site);
void mma_m16n8k16_f32_bf16(Warp&, u32 mask, u32 site);
void mma_m16n8k16_f32_f16(Warp&, u32 mask, u32 site);
void mma_m16n8k4_f32_tf32(Warp&, u32 mask, u32 site);
void mma_m16n8k8_f16_f16(Warp&, u32 mask, u32 site);
void mma_m16n8k8_f32_bf16(Warp&, u32 mask, u32 site);
void mma_m16n8k8_f32_f16(Warp&, u32 mask, u32 site);
void mma_m16n8k8_f32_tf32(Warp&, u32 mask, u32 site);
void movmatrix_trans(Warp&, u32 mask, u32 site);
void redux_add(Warp&, u32 mask, u32 site);
void redux_and(Warp&, u32 mask, u32 site);
void redux_max_s32(Warp&, u32 mask, u32 site);
void redux_max_u32(Warp&, u32 mask, u32 site);
void redux_min_s32(Warp&, u32 mask, u32 site);
void redux_min_u32(Warp&, u32 mask, u32 site);
void redux_or(Warp&, u32 mask, u32 site);
void redux_xor(Warp&, u32 mask, u32 site);
void shfl_bfly(Warp&, u32 mask, u32 site);
void shfl_down(Warp&, u32 mask, u32 site);
void shfl_idx(Warp&, u32 mask, u32 site);
void shfl_up(Warp&, u32 mask, u32 site);
void stmatrix_x1(Warp&, u32 mask, u32 site);
void stmatrix_x1_trans(Warp&, u32 mask, u32 site);
void stmatrix_x2(Warp&, u32 mask, u32 site);
void stmatrix_x2_trans(Warp&, u32 mask, u32 site);
void stmatrix_x4(Warp&, u32 mask, u32 site);
void stmatrix_x4_trans(Warp&, u32 mask, u32 site);
void vote_all(Warp&, u32 mask, u32 site);
void vote_any(Warp&, u32 mask, u32 site);
void vote_ballot(Warp&, u32 mask, u32 site);
void vote_uni(Warp&, u32 mask, u32 site);
