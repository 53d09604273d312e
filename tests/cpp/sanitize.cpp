// Runs all kernels that this CPU supports on awkward sizes, under the address and undefined-behaviour sanitizers
// (make sanitize), and compares the results with the definition in double.
//
// Each image is a separate heap block, so that the sanitizer detects an access one element beyond it. In this build,
// the kernels' workspace is filled with NaN and has poisoned gaps (csrc/cpu/isa/workspace.h).

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/elements.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/sums.h"
#include "cpu/tasks.h"

namespace {

using namespace wae;

std::mt19937 random_bits(20260);

// A batch of maps in double. With the functions below, it defines 3x3 layers and their gradients.
struct Maps {
  int n, channels, height, width;
  std::vector<double> data;

  Maps(int n, int channels, int height, int width)
      : n(n), channels(channels), height(height), width(width), data(size_t(n) * channels * height * width) {}
  size_t index(int i, int c, int y, int x) const {
    return ((size_t(i) * channels + c) * height + y) * width + x;
  }
  double& at(int i, int c, int y, int x) { return data[index(i, c, y, x)]; }
  const double& at(int i, int c, int y, int x) const { return data[index(i, c, y, x)]; }
  double get(int i, int c, int y, int x) const {
    const bool inside = 0 <= y && y < height && 0 <= x && x < width;
    return inside ? data[index(i, c, y, x)] : 0.0;
  }
};

// Calls f for each triple (output map, input map, tap) of a layer that reads input (s*y + ky - 1, s*x + kx - 1), and
// each row, with the weight's index, the number of pixels that the tap connects, and the first pixel of the output row
// and of the input row, whose pixels are `stride` apart. It works by rows because this takes nearly all of the time
// under the sanitizers.
template <class O, class I, class F>
void for_taps(O& out, I& in, int stride, const F& f) {
  for (int i = 0; i < out.n; ++i)
    for (int o = 0; o < out.channels; ++o)
      for (int c = 0; c < in.channels; ++c)
        for (int k = 0; k < 9; ++k) {
          const int dy = k / 3 - 1, dx = k % 3 - 1;
          const int first = dx < 0 ? 1 : 0, end = std::min(out.width, (in.width - dx + stride - 1) / stride);
          for (int y = 0; y < out.height && first < end; ++y) {
            const int iy = stride * y + dy;
            if (0 <= iy && iy < in.height)
              f((o * in.channels + c) * 9 + k, end - first, &out.at(i, o, y, first),
                &in.at(i, c, iy, stride * first + dx));
          }
        }
}

// weight[o][c][k], as Conv2d; a transposed convolution is the same layer read backwards.
void convolve(Maps& out, const Maps& in, const float* weight, int stride) {
  for_taps(out, in, stride, [&](int tap, int count, double* to, const double* from) {
    for (int x = 0; x < count; ++x) to[x] += weight[tap] * from[stride * x];
  });
}
void convolve_transposed(const Maps& out, Maps& in, const float* weight, int stride) {
  for_taps(out, in, stride, [&](int tap, int count, const double* from, double* to) {
    for (int x = 0; x < count; ++x) to[stride * x] += weight[tap] * from[x];
  });
}
std::vector<double> weight_gradient(const Maps& out, const Maps& in, int stride) {
  std::vector<double> gradient(size_t(out.channels) * in.channels * 9);
  for_taps(out, in, stride, [&](int tap, int count, const double* a, const double* b) {
    for (int x = 0; x < count; ++x) gradient[tap] += a[x] * b[stride * x];
  });
  return gradient;
}
std::vector<double> bias_gradient(const Maps& maps) {
  std::vector<double> sums(maps.channels);
  for (size_t j = 0; j < maps.data.size(); ++j) {
    sums[j / (size_t(maps.height) * maps.width) % maps.channels] += maps.data[j];
  }
  return sums;
}
void add_bias(Maps& maps, const float* bias, bool relu) {
  for (size_t j = 0; j < maps.data.size(); ++j) {
    double& value = maps.data[j];
    value += bias[j / (size_t(maps.height) * maps.width) % maps.channels];
    if (relu) value = std::max(value, 0.0);
  }
}
void mask(Maps& gradient, const Maps& activation) {
  for (size_t j = 0; j < gradient.data.size(); ++j) gradient.data[j] *= activation.data[j] > 0;
}

// --------------------------------------------------------------------------------------------- images

// A batch of images in one heap block, in some layout.
struct Batch {
  std::vector<unsigned char> memory;
  Images view;

  Batch(int n, int height, int width, Element element, int layout, int channels = 3) {
    const bool is_byte = element == Element::kUInt8 || element == Element::kInt8;
    const int64_t size = element == Element::kFloat32 ? 4 : is_byte ? 1 : 2;
    const int64_t step = std::max(layout, 1);  // from 2 on: every step-th pixel of a wider image
    view = {nullptr, element, n, height, width, 0, 0, 0, 0, channels};
    if (layout == 1) {
      view.stride_c = 1, view.stride_w = channels, view.stride_h = channels * width;
      view.stride_n = channels * width * height;
    } else {
      view.stride_w = step, view.stride_h = step * width, view.stride_c = view.stride_h * height;
      view.stride_n = channels * view.stride_c;
    }
    const int64_t last = (n - 1) * view.stride_n + (channels - 1) * view.stride_c +
                         (height - 1) * view.stride_h + (width - 1) * view.stride_w;
    memory.assign((last + 1) * size, 0xFF);
    view.data = memory.data();
  }
  int64_t index(int i, int c, int y, int x) const {
    return i * view.stride_n + c * view.stride_c + y * view.stride_h + x * view.stride_w;
  }
  float get(int i, int c, int y, int x) const {
    return read_float(view.data, view.element, index(i, c, y, x));
  }
  // Fills the batch with random values and returns them in double.
  Maps fill() {
    std::normal_distribution<float> normal;
    Maps maps(int(view.batch), int(view.channels), int(view.height), int(view.width));
    for (int i = 0; i < maps.n; ++i)
      for (int c = 0; c < maps.channels; ++c)
        for (int y = 0; y < maps.height; ++y)
          for (int x = 0; x < maps.width; ++x) {
            if (view.element == Element::kUInt8) {
              memory[index(i, c, y, x)] = static_cast<unsigned char>(random_bits());
            } else {
              write_float(view.data, view.element, index(i, c, y, x), normal(random_bits));
            }
            maps.at(i, c, y, x) = get(i, c, y, x);
          }
    return maps;
  }
};

std::vector<float> random_floats(size_t count, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(random_bits);
  return numbers;
}

// The numbers of an array of any dimensions.
template <class Array>
float* flat(Array& array) {
  return reinterpret_cast<float*>(&array);
}
template <class Array>
void fill(Array& array, const std::vector<float>& numbers) {
  std::copy(numbers.begin(), numbers.end(), flat(array));
}

// Biases that keep all of these sums away from the kink of ReLU, where float and double may disagree on the gradient.
// Still, many sums are negative.
std::vector<float> kink_free(const Maps& sums) {
  std::vector<float> biases(sums.channels);
  for (int c = 0; c < sums.channels; ++c) {
    float& bias = biases[c] = c % 2 ? 8.0f : -8.0f;
    const auto is_near = [&] {
      for (int i = 0; i < sums.n; ++i)
        for (int y = 0; y < sums.height; ++y)
          for (int x = 0; x < sums.width; ++x)
            if (std::abs(sums.get(i, c, y, x) + bias) < 1e-3) return true;
      return false;
    };
    while (is_near()) bias += 1 / 64.0f;
  }
  return biases;
}

// ------------------------------------------------------------------------------------------ comparison

struct Distance {
  double difference = 0, norm = 0;
  void add(double got, double want) { add(got, want, want); }
  // relative_to: the sum that was rounded, of which later additions may have cancelled nearly everything.
  void add(double got, double want, double relative_to) {
    difference += (got - want) * (got - want);
    norm += relative_to * relative_to;
  }
};

void require_close(const Distance& distance, double tolerance, const std::string& what) {
  const double relative = std::sqrt(distance.difference / std::max(distance.norm, 1e-30));
  if (relative <= tolerance) return;  // false for NaN
  std::printf("FAILED: %s is off by %.3g, at most %.3g is allowed\n", what.c_str(), relative, tolerance);
  std::exit(1);
}

void require_close(const Batch& got, const Maps& want, double tolerance, const std::string& what) {
  Distance distance;
  for (int i = 0; i < want.n; ++i)
    for (int c = 0; c < want.channels; ++c)
      for (int y = 0; y < want.height; ++y)
        for (int x = 0; x < want.width; ++x) distance.add(got.get(i, c, y, x), want.get(i, c, y, x));
  require_close(distance, tolerance, what);
}

void require_close(const float* got, const std::vector<double>& want, double tolerance,
                   const std::string& what) {
  Distance distance;
  for (size_t i = 0; i < want.size(); ++i) distance.add(got[i], want[i]);
  require_close(distance, tolerance, what);
}

double tolerance_of(Element element) {
  return element == Element::kFloat16 ? 2e-3 : element == Element::kBFloat16 ? 1.5e-2 : 1e-5;
}

// ------------------------------------------------------------------------------------------------ cases

struct Case {
  const Kernels* kernels;
  std::string name;
  int n, height, width, threads, layout;
  Element element;
};

void run_encoder(const Case& c) {
  const int h = int(half_size(c.height)), w = int(half_size(c.width));
  const double tolerance = tolerance_of(c.element == Element::kUInt8 ? Element::kFloat32 : c.element);
  const auto w1 = random_floats(432, 0.2f), w2 = random_floats(2304, 0.1f), w3 = random_floats(2304, 0.1f);
  const auto wl = random_floats(432, 0.1f), wh = random_floats(432, 0.1f), branch_bias = random_floats(3, 1);
  Batch image(c.n, c.height, c.width, c.element, c.layout);
  const Maps raw = image.fill();
  const float scale = c.element == Element::kUInt8 ? 1 / 64.0f : 0.5f;
  const Affine affine{{scale, scale, scale}, {0.25f, 0, -0.25f}};
  Maps x = raw;
  for (size_t j = 0; j < x.data.size(); ++j) {
    x.data[j] = x.data[j] * scale + affine.shift[j / (size_t(c.height) * c.width) % 3];
  }
  Maps a1(c.n, 16, c.height, c.width), a2 = a1, a3 = a1, low(c.n, 3, h, w), high = low;
  convolve(a1, x, w1.data(), 1);
  const auto b1 = kink_free(a1);
  add_bias(a1, b1.data(), true), convolve(a2, a1, w2.data(), 1);
  const auto b2 = kink_free(a2);
  add_bias(a2, b2.data(), true), convolve(a3, a2, w3.data(), 1);
  const auto b3 = kink_free(a3);
  add_bias(a3, b3.data(), true);
  convolve(low, a3, wl.data(), 2), add_bias(low, branch_bias.data(), false);
  convolve(high, a3, wh.data(), 2), add_bias(high, branch_bias.data(), false);

  EncoderWeights weights;
  fill(weights.conv1_weight, w1), fill(weights.conv1_bias, b1);
  fill(weights.conv2_weight, w2), fill(weights.conv2_bias, b2);
  fill(weights.conv3_weight, w3), fill(weights.conv3_bias, b3);
  fill(weights.low_weight, wl), fill(weights.low_bias, branch_bias);
  fill(weights.high_weight, wh), fill(weights.high_bias, branch_bias);
  auto pack = std::make_unique<EncoderPack>();
  auto transposed = std::make_unique<EncoderBackwardPack>();
  wae::pack(*pack, weights);
  wae::pack(*transposed, weights);

  const Element out_element = c.element == Element::kUInt8 ? Element::kFloat32 : c.element;
  Batch out_low(c.n, h, w, out_element, c.layout), out_high(c.n, h, w, out_element, c.layout);
  const EncodeArgs args{image.view, out_low.view, out_high.view, affine, pack.get()};
  for (const Task& task : plan_tasks(c.n, h, w, c.threads, kForwardWarmUp)) c.kernels->encode(args, task);
  require_close(out_low, low, tolerance, c.name + " encode low");
  require_close(out_high, high, tolerance, c.name + " encode high");

  Batch grad_low(c.n, h, w, out_element, c.layout), grad_high(c.n, h, w, out_element, c.layout);
  const Maps g_low = grad_low.fill(), g_high = grad_high.fill();
  Maps g3(c.n, 16, c.height, c.width), g2 = g3, g1 = g3, gx(c.n, 3, c.height, c.width);
  convolve_transposed(g_low, g3, wl.data(), 2), convolve_transposed(g_high, g3, wh.data(), 2), mask(g3, a3);
  convolve_transposed(g3, g2, w3.data(), 1), mask(g2, a2);
  convolve_transposed(g2, g1, w2.data(), 1), mask(g1, a1);
  convolve_transposed(g1, gx, w1.data(), 1);
  std::vector<double> g_scale(3);
  const std::vector<double> g_shift = bias_gradient(gx);
  for (size_t j = 0; j < gx.data.size(); ++j) {
    g_scale[j / (size_t(c.height) * c.width) % 3] += gx.data[j] * raw.data[j];
    gx.data[j] *= scale;
  }

  const bool need_image = c.element != Element::kUInt8;
  Batch grad_image(c.n, c.height, c.width, c.element, c.layout);
  const EncodeBackwardArgs backward{
      grad_low.view, grad_high.view, image.view, grad_image.view, affine, pack.get(), transposed.get(),
      need_image,    true,           true};
  const auto collected = std::make_unique<Collected<EncoderSums>>();
  for (const Task& task : plan_tasks(c.n, h, w, c.threads, kBackwardWarmUp)) {
    c.kernels->encode_backward(backward, task, *collected);
  }
  const EncoderSums& sums = collected->result();
  EncoderWeights got;
  unpack(sums, got);
  if (need_image) require_close(grad_image, gx, tolerance, c.name + " grad_image");
  require_close(flat(got.conv1_weight), weight_gradient(g1, x, 1), tolerance, c.name + " grad_conv1_weight");
  require_close(flat(got.conv2_weight), weight_gradient(g2, a1, 1), tolerance, c.name + " grad_conv2_weight");
  require_close(flat(got.conv3_weight), weight_gradient(g3, a2, 1), tolerance, c.name + " grad_conv3_weight");
  require_close(flat(got.low_weight), weight_gradient(g_low, a3, 2), tolerance, c.name + " grad_low_weight");
  require_close(flat(got.high_weight), weight_gradient(g_high, a3, 2), tolerance,
                c.name + " grad_high_weight");
  require_close(flat(got.conv1_bias), bias_gradient(g1), tolerance, c.name + " grad_conv1_bias");
  require_close(flat(got.conv2_bias), bias_gradient(g2), tolerance, c.name + " grad_conv2_bias");
  require_close(flat(got.conv3_bias), bias_gradient(g3), tolerance, c.name + " grad_conv3_bias");
  require_close(flat(got.low_bias), bias_gradient(g_low), tolerance, c.name + " grad_low_bias");
  require_close(flat(got.high_bias), bias_gradient(g_high), tolerance, c.name + " grad_high_bias");
  require_close(sums.image_scale, g_scale, 10 * tolerance, c.name + " grad_image_scale");
  require_close(sums.image_shift, g_shift, 10 * tolerance, c.name + " grad_image_shift");
}

void run_decoder(const Case& c) {
  const int h = int(half_size(c.height)), w = int(half_size(c.width));
  const double tolerance = tolerance_of(c.element);
  const auto wl = random_floats(432, 0.2f), wh = random_floats(432, 0.2f), bh = random_floats(16, 1);
  const auto w1 = random_floats(2304, 0.1f), w2 = random_floats(2304, 0.1f), w3 = random_floats(432, 0.1f);
  const auto b3 = random_floats(3, 1);

  Batch low(c.n, h, w, c.element, c.layout), high(c.n, h, w, c.element, c.layout);
  const Maps l = low.fill(), r = high.fill();
  Maps up(c.n, 16, c.height, c.width), a1 = up, a2 = up, image(c.n, 3, c.height, c.width);
  convolve_transposed(l, up, wl.data(), 2), convolve_transposed(r, up, wh.data(), 2);
  add_bias(up, bh.data(), false);
  const auto bl = kink_free(up);
  add_bias(up, bl.data(), true), convolve(a1, up, w1.data(), 1);
  const auto b1 = kink_free(a1);
  add_bias(a1, b1.data(), true), convolve(a2, a1, w2.data(), 1);
  const auto b2 = kink_free(a2);
  add_bias(a2, b2.data(), true), convolve(image, a2, w3.data(), 1);
  add_bias(image, b3.data(), false);

  DecoderWeights weights;
  fill(weights.low_weight, wl), fill(weights.low_bias, bl);
  fill(weights.high_weight, wh), fill(weights.high_bias, bh);
  fill(weights.conv1_weight, w1), fill(weights.conv1_bias, b1);
  fill(weights.conv2_weight, w2), fill(weights.conv2_bias, b2);
  fill(weights.conv3_weight, w3), fill(weights.conv3_bias, b3);
  auto pack = std::make_unique<DecoderPack>();
  auto transposed = std::make_unique<DecoderBackwardPack>();
  wae::pack(*pack, weights);
  wae::pack(*transposed, weights);

  Batch out(c.n, c.height, c.width, c.element, c.layout);
  const DecodeArgs args{low.view, high.view, out.view, pack.get()};
  for (const Task& task : plan_tasks(c.n, h, w, c.threads, kForwardWarmUp)) c.kernels->decode(args, task);
  require_close(out, image, tolerance, c.name + " decode");

  Batch grad_image(c.n, c.height, c.width, c.element, c.layout);
  const Maps g = grad_image.fill();
  Maps g2(c.n, 16, c.height, c.width), g1 = g2, gu = g2, g_low(c.n, 3, h, w), g_high = g_low;
  convolve_transposed(g, g2, w3.data(), 1), mask(g2, a2);
  convolve_transposed(g2, g1, w2.data(), 1), mask(g1, a1);
  convolve_transposed(g1, gu, w1.data(), 1), mask(gu, up);
  convolve(g_low, gu, wl.data(), 2), convolve(g_high, gu, wh.data(), 2);

  Batch grad_low(c.n, h, w, c.element, c.layout), grad_high(c.n, h, w, c.element, c.layout);
  const DecodeBackwardArgs backward{grad_image.view,  low.view,       high.view,
                                    grad_low.view,    grad_high.view, pack.get(),
                                    transposed.get(), true,           true};
  const auto collected = std::make_unique<Collected<DecoderSums>>();
  for (const Task& task : plan_tasks(c.n, h, w, c.threads, kBackwardWarmUp)) {
    c.kernels->decode_backward(backward, task, *collected);
  }
  DecoderWeights got;
  unpack(collected->result(), got);
  require_close(grad_low, g_low, tolerance, c.name + " grad_low");
  require_close(grad_high, g_high, tolerance, c.name + " grad_high");
  require_close(flat(got.low_weight), weight_gradient(l, gu, 2), tolerance, c.name + " grad_low_weight");
  require_close(flat(got.high_weight), weight_gradient(r, gu, 2), tolerance, c.name + " grad_high_weight");
  require_close(flat(got.conv1_weight), weight_gradient(g1, up, 1), tolerance, c.name + " grad_conv1_weight");
  require_close(flat(got.conv2_weight), weight_gradient(g2, a1, 1), tolerance, c.name + " grad_conv2_weight");
  require_close(flat(got.conv3_weight), weight_gradient(g, a2, 1), tolerance, c.name + " grad_conv3_weight");
  require_close(flat(got.low_bias), bias_gradient(gu), tolerance, c.name + " grad_low_bias");
  require_close(flat(got.high_bias), bias_gradient(gu), tolerance, c.name + " grad_high_bias");
  require_close(flat(got.conv1_bias), bias_gradient(g1), tolerance, c.name + " grad_conv1_bias");
  require_close(flat(got.conv2_bias), bias_gradient(g2), tolerance, c.name + " grad_conv2_bias");
  require_close(flat(got.conv3_bias), bias_gradient(g), tolerance, c.name + " grad_conv3_bias");
}

void run_score_decoder(const Case& c, int classes, int features) {
  const int h = int(half_size(c.height)), w = int(half_size(c.width));
  const double tolerance = tolerance_of(c.element);
  const std::string name = c.name + " " + std::to_string(classes) + " " + std::to_string(features);
  auto weights = std::make_unique<ScoreDecoderWeights>();
  weights->classes = classes, weights->features = features;
  float *const wl = flat(weights->low_weight), *const wh = flat(weights->high_weight);
  float *const w1 = flat(weights->conv1_weight), *const w2 = flat(weights->conv2_weight);
  fill(weights->low_weight, random_floats(144 * classes, 0.2f));
  fill(weights->high_weight, random_floats(144 * features, 0.2f));
  fill(weights->conv1_weight, random_floats(2304, 0.1f));
  fill(weights->conv2_weight, random_floats(144 * classes, 0.1f));
  fill(weights->high_bias, random_floats(16, 1)), fill(weights->conv2_bias, random_floats(classes, 1));

  Batch low(c.n, h, w, c.element, c.layout, classes), high(c.n, h, w, c.element, c.layout, features);
  const Maps l = low.fill(), r = high.fill();
  Maps up(c.n, 16, c.height, c.width), a1 = up, scores(c.n, classes, c.height, c.width);
  convolve_transposed(l, up, wl, 2), convolve_transposed(r, up, wh, 2);
  add_bias(up, weights->high_bias, false);
  fill(weights->low_bias, kink_free(up));
  add_bias(up, weights->low_bias, true), convolve(a1, up, w1, 1);
  fill(weights->conv1_bias, kink_free(a1));
  add_bias(a1, weights->conv1_bias, true), convolve(scores, a1, w2, 1);
  add_bias(scores, flat(weights->conv2_bias), false);

  auto pack = std::make_unique<ScoreDecoderPack>();
  auto transposed = std::make_unique<ScoreDecoderBackwardPack>();
  wae::pack(*pack, *weights);
  wae::pack(*transposed, *weights);
  Batch out(c.n, c.height, c.width, c.element, c.layout, classes);
  const DecodeScoresArgs args{low.view, high.view, out.view, pack.get()};
  for (const Task& task : plan_tasks(c.n, h, w, c.threads, kScoresWarmUp))
    c.kernels->decode_scores(args, task);
  require_close(out, scores, tolerance, name + " decode_scores");

  Batch grad_scores(c.n, c.height, c.width, c.element, c.layout, classes);
  const Maps g = grad_scores.fill();
  Maps g1(c.n, 16, c.height, c.width), gu = g1, g_low(c.n, classes, h, w), g_high(c.n, features, h, w);
  convolve_transposed(g, g1, w2, 1), mask(g1, a1);
  convolve_transposed(g1, gu, w1, 1), mask(gu, up);
  convolve(g_low, gu, wl, 2), convolve(g_high, gu, wh, 2);

  Batch grad_low(c.n, h, w, c.element, c.layout, classes),
      grad_high(c.n, h, w, c.element, c.layout, features);
  const DecodeScoresBackwardArgs backward{grad_scores.view, low.view,       high.view,
                                          grad_low.view,    grad_high.view, pack.get(),
                                          transposed.get(), true,           true};
  const auto collected = std::make_unique<Collected<ScoreDecoderSums>>();
  for (const Task& task : plan_tasks(c.n, h, w, c.threads, kBackwardWarmUp)) {
    c.kernels->decode_scores_backward(backward, task, *collected);
  }
  unpack(collected->result(), *weights);  // in place of the weights
  require_close(grad_low, g_low, tolerance, name + " grad_low");
  require_close(grad_high, g_high, tolerance, name + " grad_high");
  require_close(wl, weight_gradient(l, gu, 2), tolerance, name + " grad_low_weight");
  require_close(wh, weight_gradient(r, gu, 2), tolerance, name + " grad_high_weight");
  require_close(w1, weight_gradient(g1, up, 1), tolerance, name + " grad_conv1_weight");
  require_close(w2, weight_gradient(g, a1, 1), tolerance, name + " grad_conv2_weight");
  require_close(weights->low_bias, bias_gradient(gu), tolerance, name + " grad_low_bias");
  require_close(weights->high_bias, bias_gradient(gu), tolerance, name + " grad_high_bias");
  require_close(weights->conv1_bias, bias_gradient(g1), tolerance, name + " grad_conv1_bias");
  require_close(flat(weights->conv2_bias), bias_gradient(g), tolerance, name + " grad_conv2_bias");
}

// Compares the int8 encoder with the definition (docs/network.md), number by number. The sums are so small that double
// holds them exactly.
void run_encoder_int8(const Case& c) {
  EncoderInt8Weights numbers{};
  const auto fill = [](auto& array, int least, int most) {
    std::uniform_int_distribution<int> uniform(least, most);
    using Number = std::remove_all_extents_t<std::remove_reference_t<decltype(array)>>;
    auto* const first = reinterpret_cast<Number*>(array);
    std::generate_n(first, sizeof array / sizeof(Number), [&] { return Number(uniform(random_bits)); });
  };
  fill(numbers.conv1_weight, -128, 127), fill(numbers.conv2_weight, -128, 127);
  fill(numbers.conv3_weight, -128, 127), fill(numbers.branches_weight, -128, 127);
  fill(numbers.bias, -20000, 20000), fill(numbers.branches_bias, -20000, 20000);
  fill(numbers.shift, 0, 10), fill(numbers.multiplier, 0, 32767);
  fill(numbers.padding, 0, 255);
  std::fill_n(numbers.scale, 6, 1 / 4096.0f);
  const bool to_bytes = c.n == 2;
  fill(numbers.zero_point, 0, 127);
  numbers.least_byte[0] = to_bytes ? 0 : kNoByte, numbers.least_byte[1] = to_bytes ? -128 : kNoByte;
  auto pack = std::make_unique<EncoderInt8Pack>();
  wae::pack(*pack, numbers);

  const int h = int(half_size(c.height)), w = int(half_size(c.width));
  Batch image(c.n, c.height, c.width, Element::kUInt8, c.layout);
  const Maps raw = image.fill();
  // Padding x with `edge` equals padding `x - edge` with zeros and adding the sums of the taps times `edge`.
  Maps x = raw, activations(c.n, 16, c.height, c.width), branches(c.n, 6, h, w);
  const auto weights_of = [](const auto& array) {
    const auto* const first = reinterpret_cast<const int8_t*>(array);
    return std::vector<float>(first, first + sizeof array);
  };
  const auto requantize = [&](int layer) {
    for (size_t j = 0; j < activations.data.size(); ++j) {
      const int o = int(j / (size_t(c.height) * c.width) % 16), shift = numbers.shift[layer][o];
      const int64_t sum = int64_t(activations.data[j]) + numbers.bias[layer][o];
      const int64_t shorter = std::clamp<int64_t>((sum + (1 << shift) / 2) >> shift, -32768, 32767);
      activations.data[j] =
          double(std::clamp<int64_t>((shorter * numbers.multiplier[layer][o] + 16384) >> 15, 0, 255));
    }
  };
  for (size_t j = 0; j < x.data.size(); ++j) {
    x.data[j] -= numbers.padding[j / (size_t(c.height) * c.width) % 3];
  }
  convolve(activations, x, weights_of(numbers.conv1_weight).data(), 1);
  for (size_t j = 0; j < activations.data.size(); ++j) {
    const size_t o = j / (size_t(c.height) * c.width) % 16;
    for (int tap = 0; tap < 27; ++tap) {
      activations.data[j] += numbers.conv1_weight[o][tap / 9][tap % 9] * numbers.padding[tap / 9];
    }
  }
  requantize(0);
  for (int layer : {1, 2}) {
    const Maps before = activations;
    std::fill(activations.data.begin(), activations.data.end(), 0.0);
    const auto weights = weights_of(layer == 1 ? numbers.conv2_weight : numbers.conv3_weight);
    convolve(activations, before, weights.data(), 1);
    requantize(layer);
  }
  convolve(branches, activations, weights_of(numbers.branches_weight).data(), 2);

  Batch low(c.n, h, w, to_bytes ? Element::kUInt8 : Element::kFloat32, c.layout);
  Batch high(c.n, h, w, to_bytes ? Element::kInt8 : Element::kFloat32, c.layout);
  const EncodeInt8Args args{image.view, low.view, high.view, pack.get()};
  for (const Task& task : plan_tasks(c.n, h, w, c.threads, kInt8WarmUp, kMaxInt8TaskWidth)) {
    int8_encoder(c.kernels)(args, task);
  }
  for (int o = 0; o < 6; ++o) {
    Maps want(c.n, 1, h, w), got = want;
    for (int i = 0; i < c.n; ++i)
      for (int y = 0; y < h; ++y)
        for (int z = 0; z < w; ++z) {
          const float value = float(branches.at(i, o, y, z) + numbers.branches_bias[o]) * numbers.scale[o];
          const float rounded = std::nearbyint(value) + float(numbers.zero_point[o]);
          const float least = float(numbers.least_byte[o / 3]);
          want.at(i, 0, y, z) = to_bytes ? std::clamp(rounded, least, least + 255) : value;
          got.at(i, 0, y, z) = (o < 3 ? low : high).get(i, o % 3, y, z);
        }
    if (got.data == want.data) continue;
    std::printf("FAILED: %s encode_int8, branch %d differs from the definition\n", c.name.c_str(), o);
    std::exit(1);
  }
}

// A 3x3 layer, with input and output in heap blocks of exactly their size. Layout 0: nchw, 1: channels_last, from 2 on:
// every layout-th pixel of a wider nchw map.
void run_conv3x3(const Case& c, int channels, int out_channels, bool with_bias) {
  const auto weight = random_floats(size_t(out_channels) * channels * 9, std::sqrt(2.0f / (9 * channels)));
  const auto bias = random_floats(out_channels, 1);
  std::vector<float> packed(panels_of(out_channels) * channels * kPackedFilter);
  pack_conv3x3(packed.data(), weight.data(), out_channels, channels);

  const int64_t area = int64_t(c.height) * c.width, step = std::max(c.layout, 1);
  const bool last = c.layout == 1;
  Conv3x3Args args{nullptr,
                   c.n,
                   channels,
                   c.height,
                   c.width,
                   step * channels * area,
                   last ? 1 : step * area,
                   last ? channels * c.width : step * c.width,
                   last ? channels : step,
                   packed.data(),
                   with_bias ? bias.data() : nullptr,
                   nullptr,
                   out_channels,
                   with_bias};
  const auto index = [&](int64_t i, int64_t k, int64_t y, int64_t x) {
    return i * args.stride_n + k * args.stride_c + y * args.stride_h + x * args.stride_w;
  };
  std::vector<float> input(index(c.n - 1, channels - 1, c.height - 1, c.width - 1) + 1, NAN);
  std::vector<float> output(c.n * out_channels * area, NAN);
  Maps x(c.n, channels, c.height, c.width), want(c.n, out_channels, c.height, c.width);
  std::normal_distribution<float> normal;
  for (int i = 0; i < c.n; ++i)
    for (int k = 0; k < channels; ++k)
      for (int y = 0; y < c.height; ++y)
        for (int z = 0; z < c.width; ++z) x.at(i, k, y, z) = input[index(i, k, y, z)] = normal(random_bits);
  convolve(want, x, weight.data(), 1);
  const Maps sums = want;
  if (with_bias) add_bias(want, bias.data(), true);

  args.input = input.data();
  args.output = output.data();
  for (const Conv3x3Task& task : plan_conv3x3(args, c.threads)) c.kernels->conv3x3(args, task);
  Distance distance;
  for (int i = 0; i < c.n; ++i)
    for (int k = 0; k < out_channels; ++k)
      for (int y = 0; y < c.height; ++y)
        for (int z = 0; z < c.width; ++z)
          distance.add(output[((size_t(i) * c.height + y) * c.width + z) * out_channels + k],
                       want.at(i, k, y, z), sums.at(i, k, y, z));
  require_close(distance, 1e-5,
                c.name + " conv3x3 " + std::to_string(channels) + " -> " + std::to_string(out_channels));
}

constexpr Element kElements[] = {Element::kFloat32, Element::kUInt8, Element::kBFloat16, Element::kFloat16};

// Runs all ops once. The name of the case is completed here.
void run(Case c, int channels, int out_channels, bool with_bias) {
  c.name += " " + std::to_string(c.n) + " x " + std::to_string(c.height) + " x " + std::to_string(c.width) +
            ", element type " + std::to_string(int(c.element)) + ", layout " + std::to_string(c.layout) +
            ", " + std::to_string(c.threads) + " threads:";
  run_encoder(c);
  if (c.element != Element::kUInt8) {
    run_decoder(c);
    run_score_decoder(c, std::min(out_channels, kMaxScoreChannels), std::min(channels, kMaxScoreChannels));
  }
  if (c.element == Element::kUInt8 && int8_encoder(c.kernels) != nullptr) {
    const std::mt19937 numbers = random_bits;  // for the same numbers with AMX and without
    if (wae_cpu_amx(1)) run_encoder_int8(c);
    random_bits = numbers;
    wae_cpu_amx(0);
    run_encoder_int8(c);
  }
  run_conv3x3(c, channels, out_channels, with_bias);
}

}  // namespace

// A case that libFuzzer (make fuzz) chooses, to find others than those in tests/cpp/corpus.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  random_bits.seed(20260);  // for the same numbers when a finding is replayed alone
  size_t next = 0;
  const auto below = [&](int most) { return next < size ? data[next++] % most : 0; };
  const char* capabilities[] = {"portable", "avx2", "avx512"};
  const char* capability = capabilities[below(3)];
  if (!wae_cpu_supports(capability)) return -1;  // do not add it to the corpus
  wae_cpu_select(capability);
  const bool wide = below(8) == 0;  // several tasks side by side
  // Not larger, because the definition takes nearly all of the time under the sanitizers.
  const int height = 1 + below(wide ? 3 : 12), width = (wide ? 250 : 1) + below(wide ? 20 : 36);
  const int n = 1 + below(2), threads = 1 + below(9), layout = below(5), channels = 1 + below(40);
  const Element element = kElements[below(4)];
  const int out_channels = 1 + below(40);
  run({wae::selected_kernels(), capability, n, height, width, threads, layout, element}, channels,
      out_channels, below(2) == 0);
  return 0;
}

#ifndef WAE_FUZZ

// Plans batches without images, whose sizes may be the largest of all: nothing may overflow.
bool plans_empty_batches() {
  for (const auto& [height, width] : {std::pair{INT64_MAX, int64_t{1}}, {int64_t{1}, INT64_MAX}}) {
    Conv3x3Args layer{};
    layer.height = height, layer.width = width, layer.out_channels = 1;
    if (!plan_conv3x3(layer, 2).empty()) return false;
    if (!plan_tasks(0, height / 2 + 1, width / 2 + 1, 2, kForwardWarmUp).empty()) return false;
  }
  return true;
}

// Runs the sizes below, and the cases in the files that the arguments name.
int main(int count, char** files) {
  constexpr int kSizes[][2] = {{1, 1}, {2, 2},   {3, 5},   {5, 4},   {1, 9},
                               {9, 1}, {17, 30}, {33, 19}, {6, 300}, {70, 11}};
  if (!plans_empty_batches()) {
    std::printf("a batch without images has tasks\n");
    return 1;
  }
  int cases = 0;
  for (const char* capability : {"avx512", "avx2", "portable"}) {
    if (!wae_cpu_supports(capability)) {
      std::printf("%s: not on this CPU\n", capability);
      continue;
    }
    wae_cpu_select(capability);
    for (const auto& size : kSizes) {
      // All layouts and element types, each with some of the sizes and numbers of threads.
      for (int variant = 0; variant < 4; ++variant, ++cases) {
        constexpr int kChannels[][2] = {{1, 1}, {3, 17}, {40, 100}, {64, 16}, {33, 5}};
        const auto [channels, out_channels] = kChannels[cases % 5];
        run({wae::selected_kernels(), capability, 1 + cases % 2, size[0], size[1], 1 + cases % 3,
             (variant + cases / 4) % 3, kElements[variant]},
            channels, out_channels, variant % 2 == 0);
      }
    }
  }
  for (int i = 1; i < count; ++i, ++cases) {
    std::ifstream file(files[i], std::ios::binary);
    const std::string content(std::istreambuf_iterator<char>(file), {});
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(content.data()), content.size());
  }
  std::printf("%d passed, 0 failed\n", cases);
}

#endif
