// The decoder of class scores in one pass: as decode.h, with one layer fewer, and with any number of channels up to
// kMaxScoreChannels in low, in high and in the scores.
//
//     low, high     upsampled (16)   conv1 (16)    scores
//     y/2   ---     y-1 ======       y-1 ======
//     y/2+1 ---  -> ...           -> ...        -> y   ......
//                   y+4 ======       y+4 ======    y+3 ......
//
// The last layer is a Winograd layer too, for 16 classes at a time. Its tiles are transposed when they are stored, to
// one plane for each class. The second 16 classes transform the inputs again, which is an eighth of their operations.
//
// Arithmetic per pixel, in vectors of 16: 2.25 for each channel of low and high + 49.8 for conv1 + for every 16 classes
// 49.8, and 6 to transpose them.

#pragma once

#include "cpu/isa/decode.h"

namespace wae::WAE_ISA {

inline void decode_scores(const DecodeScoresArgs& args, const Task& task) {
  const int64_t height = args.scores.height, width = args.scores.width;
  const Span span = tiled_span(2 * task.x0, std::min(2 * task.x1, width), width);
  const int panels = static_cast<int>(panels_of(args.scores.channels));
  Workspace workspace(task);
  WinogradScratch& scratch = workspace.winograd();
  const Planes scores = workspace.planes(kTile, panels * kChannels);
  DecoderStart start(args.low, args.high, start_of(*args.weights), task, height, width, workspace, scratch,
                     {3, 6, 9}, span.begin - 1, span.tiles_end() + 1, 2 * task.y0 - 1);
  const int64_t bottom = std::min(2 * task.y1, height);
  for (int64_t y = 2 * task.y0; y < bottom; y += kTile) {
    start.conv1_until(y + kTile + 1);
    for (int panel = 0; panel < panels; ++panel) {
      conv16_planes(start.rows1, scores, panel * kChannels, y, span, args.weights->conv2[panel],
                    args.weights->conv2_bias[panel].b, scratch);
    }
    for (int64_t row = y; row < std::min(y + kTile, bottom); ++row) {
      store_planes(scores, args.scores, task.n, row, span.begin, span.end);
    }
  }
}

}  // namespace wae::WAE_ISA
