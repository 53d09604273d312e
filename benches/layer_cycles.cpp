// Measures how many cycles per pixel the layers of the CPU kernels take on one core, with one instruction set: figures
// of docs/kernels.md. Of many short runs the fastest counts, so that other programs may run meanwhile. x86-64 only.
//
//     isa="-DWAE_AVX512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"     # or "-DWAE_AVX2 -mavx2 -mfma"
//     g++ -std=c++20 -O3 -Icsrc $isa benches/layer_cycles.cpp -o build/layer_cycles && build/layer_cycles

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#define WAE_ISA measured
#include "cpu/isa/conv3x3.h"
#include "cpu/isa/workspace.h"
#include "cpu/tasks.h"

using namespace wae;
using namespace wae::measured;

namespace {

// The shortest time of `run`, in seconds.
template <class F>
double shortest(const F& run) {
  double best = 1;
  for (int round = 0; round < 3000; ++round) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return best;
}

// Cycles per second: each multiplication waits 3 cycles for the one before, on every current processor.
double clock_rate() {
  constexpr int kSteps = 20'000;
  return 3 * kSteps / shortest([] {
           uint64_t x = 3;
           for (int i = 0; i < kSteps; ++i) asm volatile("imul %0, %0" : "+r"(x));
         });
}

// Prints the cycles per pixel of `run`, which is repeated until it takes long compared with reading the time.
template <class F>
void report(const char* name, int64_t pixels, const F& run) {
  const int64_t repetitions = 8000 / pixels + 1;
  const double seconds = shortest([&] {
    for (int64_t i = 0; i < repetitions; ++i) run();
  });
  std::printf("%-52s %6.1f\n", name, seconds * clock_rate() / static_cast<double>(pixels * repetitions));
}

// Memory of ones, in cache lines of its own. Weights are 1/16, so that all results stay ordinary numbers.
class Ones {
 public:
  explicit Ones(int64_t count) : lines_(count / kChannels + 1) {
    for (Bias16& line : lines_) std::fill_n(line.b, kChannels, 1.0f);
  }
  Rows rows(int count, int64_t width) { return {data(), count, row_size(width), -kMargin}; }
  Planes planes(int count, int planes, int64_t width) {
    return {data(), count, planes, width + 64, -kMargin};
  }
  float* data() { return lines_[0].b; }

  static int64_t row_size(int64_t width) { return (width + 49) * kChannels; }  // as in a Workspace

 private:
  static constexpr int64_t kMargin = 16;
  std::vector<Bias16> lines_;
};

template <class Pack>
Pack weights_of_one_16th() {
  Pack pack;
  std::fill_n(reinterpret_cast<float*>(&pack), sizeof pack / sizeof(float), 1.0f / 16);
  return pack;
}

constexpr int64_t kHeight = 36;  // rows of a run: each slot of a window of 9 or fewer is used several times

// conv2 and conv3, and the parts of them. Everything but the rows fits the first-level cache.
void report_winograd(int64_t width) {
  static const auto weights = weights_of_one_16th<Winograd16>();
  static WinogradScratch scratch;
  alignas(64) static float bias[16];
  Ones memory(9 * Ones::row_size(width)), results(9 * Ones::row_size(width));
  const Rows in = memory.rows(9, width), out = results.rows(9, width);
  const float* inputs[kPatch];
  float* outputs[kTile];
  in.at(0, 0, inputs);
  out.at(0, 0, outputs);
  constexpr int64_t kPixels = kGroup * kTile * kTile;
  std::fill_n(&scratch.v[0][0][0], sizeof scratch / sizeof(float), 1.0f);
  report("conv2, conv3: products", kPixels, [&] { winograd_multiply(weights, bias, kGroup, scratch); });
  report("  input transform", kPixels, [&] { winograd_input(inputs, kGroup, scratch); });
  report("  output transform and ReLU", kPixels,
         [&] { winograd_output(kGroup, scratch, 0, PutPixels<Relu>{outputs, Relu{}}); });
  const Span span = tiled_span(0, width, width);
  report("  the whole layer, rows in the second-level cache", kHeight * width, [&] {
    for (int64_t y = 0; y < kHeight; y += kTile)
      conv16_rows(in, out, y, span, kHeight + kTile, width, weights, bias, scratch, Relu{});
  });
}

void report_encoder(int64_t width) {
  static const auto conv1 = weights_of_one_16th<Direct3>();
  static const auto branches = weights_of_one_16th<Direct6>();
  alignas(64) static float bias[16];
  const Span span = pixel_span(0, width, width);
  Ones image(9 * (width + 64)), memory(6 * Ones::row_size(width)), results(6 * (width + 64));
  const Planes planes = image.planes(3, 3, width), halves = results.planes(1, 6, width);
  const Rows rows1 = memory.rows(6, width), rows3 = memory.rows(5, width);
  report("conv1", kHeight * width, [&] {
    for (int64_t y = 0; y < kHeight; ++y)
      conv3to16_row(planes, rows1, y, span, kHeight, width, conv1, bias, Relu{});
  });
  report_winograd(width);
  report("low, high", kHeight * width, [&] {
    for (int64_t y = 0; y < kHeight / 2; ++y)
      downsample_row(rows3, halves, y, {0, 0, 0, 0, width / 2}, branches.numbers(), bias);
  });
}

// The layers of the decoder of scores that other ops do not have, for 11 classes and 16 features.
void report_scores(int64_t width) {
  constexpr int kClasses = 11, kPlanes = kClasses + 16;
  static const auto weights = weights_of_one_16th<Winograd16>();
  static const auto up = weights_of_one_16th<DirectScores>();
  static WinogradScratch scratch;
  alignas(64) static float bias[16];
  Ones halves(3 * kPlanes * (width + 64)), memory(9 * Ones::row_size(width)), results(4 * 16 * (width + 64));
  Ones image(kClasses * kHeight * width);
  const Planes branches = halves.planes(3, kPlanes, width), planes = results.planes(4, 16, width);
  const Rows rows = memory.rows(9, width), rows_up = memory.rows(6, width);
  const Images scores{.data = image.data(),
                      .batch = 1,
                      .height = kHeight,
                      .width = width,
                      .stride_c = kHeight * width,
                      .stride_h = width,
                      .stride_w = 1,
                      .channels = kClasses};
  report("scores: transposed convolutions", kHeight * width, [&] {
    for (int64_t y = 0; y < kHeight; ++y)
      upsample_row(branches, rows_up, y, pixel_span(0, width, width), kHeight, width, up.numbers(), bias,
                   Relu{});
  });
  report("  conv2 with its transposition", kHeight * width, [&] {
    for (int64_t y = 0; y < kHeight; y += kTile)
      conv16_planes(rows, planes, 0, y, tiled_span(0, width, width), weights, bias, scratch);
  });
  report("  copy to the scores", kHeight * width, [&] {
    for (int64_t y = 0; y < kHeight; ++y) store_planes(planes, scores, 0, y, 0, width);
  });
}

void report_conv3x3(const char* name, int64_t size) {
  constexpr int64_t kInputs = 3, kOutputs = 64;
  Ones image(size * size * kInputs), filters(kOutputs * kInputs * 9), outputs(size * size * kOutputs);
  const Conv3x3Args args{.input = image.data(),
                         .batch = 1,
                         .channels = kInputs,
                         .height = size,
                         .width = size,
                         .stride_n = 0,
                         .stride_c = 1,
                         .stride_h = size * kInputs,
                         .stride_w = kInputs,
                         .packed = filters.data(),
                         .bias = nullptr,
                         .output = outputs.data(),
                         .out_channels = kOutputs,
                         .relu = true};
  const auto tasks = plan_conv3x3(args, 1);
  report(name, size * size, [&] {
    for (const Conv3x3Task& task : tasks) conv3x3(args, task);
  });
}

}  // namespace

int main() {
  std::printf("%.2f GHz; cycles per pixel:\n", clock_rate() / 1e9);
  report_encoder(224);
  report_scores(240);
  report_conv3x3("conv3x3, 3 -> 64 channels, 28 x 28", 28);
  report_conv3x3("conv3x3, 3 -> 64 channels, 112 x 112", 112);
}
