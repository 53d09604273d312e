// G of F(4x4, 3x3): a filter's values at the points 0, 1, -1, 2, -2, infinity, scaled so that the input and
// output transforms (layers.h) have small whole numbers. A filter g becomes U = G g G^T.

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

// conv3x3.h transforms filters while it runs; their taps are divided by these before, so that G's numbers are
// whole, and few.
inline constexpr float kFilterScale[3] = {24, 12, 6};

}  // namespace wae
