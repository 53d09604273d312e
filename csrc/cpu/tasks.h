// Divides the work on a batch into tasks for a number of threads.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace wae {

// A task that does not begin at the top of the image recomputes rows of the task above for its own first rows. This
// takes about as long as this number of half-resolution rows.
inline constexpr int64_t kForwardWarmUp = 4, kBackwardWarmUp = 6, kInt8WarmUp = 1, kScoresWarmUp = 2;

// The number of pieces into which each column of an image is cut, so that the busiest thread finishes earliest.
inline int64_t best_pieces(int64_t columns, int64_t half_height, int64_t threads, int64_t warm_up) {
  int64_t best = 1, best_time = INT64_MAX;
  for (int64_t pieces = 1; pieces <= std::max<int64_t>(half_height / (2 * warm_up), 1); ++pieces) {
    const int64_t rounds = (columns * pieces + threads - 1) / threads;
    const int64_t rows = half_height + (pieces - 1) * warm_up;
    const int64_t time = rounds * ((rows + pieces - 1) / pieces);
    if (time < best_time) best = pieces, best_time = time;
    if (pieces >= 2 * threads) break;
  }
  return best;
}

// Every half-resolution pixel of every image is in exactly one task. The width alone decides how columns are cut, and
// rows are cut at even numbers, so that results do not depend on the number of threads.
inline std::vector<Task> plan_tasks(int64_t batch, int64_t half_height, int64_t half_width, int64_t threads,
                                    int64_t warm_up, int64_t max_width = kMaxTaskWidth) {
  const int64_t strips = (half_width + max_width - 1) / max_width;
  const int64_t strip_width = ((half_width + strips - 1) / strips + 1) / 2 * 2;
  const int64_t pieces = best_pieces(batch * strips, half_height, std::max<int64_t>(threads, 1), warm_up);
  const int64_t rows = half_height + (pieces - 1) * warm_up;
  std::vector<Task> tasks;
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t x = 0; x < half_width; x += strip_width) {
      for (int64_t piece = 0, y = 0; piece < pieces; ++piece) {
        // The first task has no warm-up, so it takes that many more rows.
        const int64_t end = (piece + 1) * rows / pieces - piece * warm_up;
        const int64_t y1 =
            piece + 1 == pieces ? half_height : std::clamp<int64_t>(end / 2 * 2, y, half_height);
        if (y1 > y) tasks.push_back({n, y, y1, x, std::min(x + strip_width, half_width)});
        y = y1;
      }
    }
  }
  return tasks;
}

// ------------------------------------------------------------------------------------- a 3x3 layer

// The tasks of a 3x3 layer: its tiles in equal pieces times its panels of output channels in equal pieces. Tasks with
// the same panels, i.e. the same filters, follow each other. The number of panel pieces is such that the busiest thread
// finishes earliest. Each task transforms its own inputs, which takes about as long as half a panel.
inline std::vector<Conv3x3Task> plan_conv3x3(const Conv3x3Args& args, int64_t threads) {
  const int64_t tiles = args.batch * tiles_along(args.height) * tiles_along(args.width);
  const int64_t panels = panels_of(args.out_channels);
  const int64_t tile_pieces = (tiles + kConvTiles - 1) / kConvTiles;
  if (tile_pieces == 0) return {};
  threads = std::max<int64_t>(threads, 1);
  const int64_t most_panels = kConvSums / ((tiles + tile_pieces - 1) / tile_pieces);
  int64_t panel_pieces = 1, best_time = INT64_MAX;
  for (int64_t size = std::min(most_panels, panels); size > 0; --size) {
    const int64_t pieces = (panels + size - 1) / size;
    const int64_t rounds = (tile_pieces * pieces + threads - 1) / threads;
    const int64_t time = rounds * (2 * size + 1);
    if (time < best_time) panel_pieces = pieces, best_time = time;
  }
  std::vector<Conv3x3Task> tasks;
  for (int64_t j = 0; j < panel_pieces; ++j) {
    for (int64_t i = 0; i < tile_pieces; ++i) {
      tasks.push_back({i * tiles / tile_pieces, (i + 1) * tiles / tile_pieces, j * panels / panel_pieces,
                       (j + 1) * panels / panel_pieces});
    }
  }
  return tasks;
}

}  // namespace wae
