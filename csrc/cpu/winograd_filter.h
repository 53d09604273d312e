// The matrix G of F(4x4, 3x3), which evaluates a filter at the points 0, 1, -1, 2, -2 and infinity, scaled so that the
// input and output transforms (layers.h) need only small integers. A filter g becomes U = G g G^T.

#pragma once

namespace wae {

inline constexpr float kG[6][3] = {
    {1.0f / 4, 0, 0},
    {-1.0f / 6, -1.0f / 6, -1.0f / 6},
    {-1.0f / 6, 1.0f / 6, -1.0f / 6},
    {1.0f / 24, 1.0f / 12, 1.0f / 6},
    {1.0f / 24, -1.0f / 12, 1.0f / 6},
    {0, 0, 1},
};

// conv3x3.h transforms filters at run time. Their taps are divided by these numbers when they are packed, so that the
// transform needs few distinct constants, all integers.
inline constexpr float kFilterScale[3] = {24, 12, 6};

}  // namespace wae
