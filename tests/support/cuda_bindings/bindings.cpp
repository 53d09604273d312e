// The launch plans and parameter structs of csrc/cuda for the tests, which launch kernels as the extension does.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>

#include "cuda/arguments.h"
#include "cuda/plan.h"

namespace py = pybind11;
namespace wc = wae::cuda;

namespace {

// Device address, sizes, strides in elements; missing dimensions have size 1.
using View = std::tuple<uint64_t, std::array<int64_t, 4>, std::array<int64_t, 4>>;

wc::TensorView view_of(const View& view) {
  return {reinterpret_cast<const void*>(std::get<0>(view)), std::get<1>(view), std::get<2>(view)};
}

std::array<wc::TensorView, 2 * wc::kFilters> views_of(const std::array<View, 2 * wc::kFilters>& views) {
  std::array<wc::TensorView, 2 * wc::kFilters> out;
  for (size_t i = 0; i < views.size(); ++i) out[i] = view_of(views[i]);
  return out;
}

// Device address, stride and type of an image's scale or shift.
using Vector = std::tuple<uint64_t, int64_t, wc::NumberType>;

wc::ChannelVector channel_vector_of(const Vector& vector) {
  return {reinterpret_cast<const void*>(std::get<0>(vector)), std::get<1>(vector), std::get<2>(vector), 0};
}

template <class Struct>
py::bytes bytes_of(const Struct& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

}  // namespace

PYBIND11_MODULE(wae_cuda_bindings, m) {
  py::enum_<wc::Mode>(m, "Mode")
      .value("float16", wc::Mode::kFloat16)
      .value("bfloat16", wc::Mode::kBFloat16)
      .value("tf32", wc::Mode::kTf32)
      .value("float32", wc::Mode::kFloat32)
      .value("bfloat16_plain", wc::Mode::kBFloat16Plain);
  py::enum_<wc::NumberType>(m, "NumberType")
      .value("none", wc::NumberType::kNone)
      .value("float16", wc::NumberType::kFloat16)
      .value("bfloat16", wc::NumberType::kBFloat16)
      .value("float32", wc::NumberType::kFloat32)
      .value("float64", wc::NumberType::kFloat64);
  py::class_<wc::Tiling>(m, "Tiling")
      .def_readonly("tiles", &wc::Tiling::tiles)
      .def_readonly("rows", &wc::Tiling::rows)
      .def_readonly("columns", &wc::Tiling::columns)
      .def_readonly("tile_height", &wc::Tiling::tile_height)
      .def_readonly("tile_width", &wc::Tiling::tile_width);
  py::class_<wc::LaunchPlan>(m, "LaunchPlan")
      .def_readonly("tiling", &wc::LaunchPlan::tiling)
      .def_readonly("grid", &wc::LaunchPlan::grid)
      .def_readonly("block", &wc::LaunchPlan::block)
      .def_readonly("shared_bytes", &wc::LaunchPlan::shared_bytes);

  m.attr("TILE_COLUMNS") = wc::kTileColumns;
  m.attr("HALO_PAIRS") = wc::kHaloPairs;
  m.def("runs_on", &wc::runs_on, py::arg("mode"), py::arg("capability"));
  m.def(
      "steps_of",
      [](const wc::Tiling& tiling, int64_t blocks) { return wc::steps_of(tiling, blocks, wc::kForwardTile); },
      py::arg("tiling"), py::arg("blocks"));
  m.def(
      "plan",
      [](const std::string& op, wc::Mode mode, int64_t batch, int64_t half_height, int64_t half_width,
         int32_t multiprocessors, int32_t blocks_each) {
        const auto layout = op == "encode" ? wc::encode_layout(mode) : wc::decode_layout(mode);
        return wc::plan(batch, half_height, half_width, {multiprocessors, blocks_each}, wc::kForwardTile,
                        wc::kThreads, layout.bytes);
      },
      py::arg("op"), py::arg("mode"), py::arg("batch"), py::arg("half_height"), py::arg("half_width"),
      py::arg("multiprocessors"), py::arg("blocks_each") = 1);
  m.def("encode_parameters", [](const View& image, bool image_is_bytes, const View& low, const View& high,
                                const std::array<View, 2 * wc::kFilters>& parameters, int element_bytes,
                                const Vector& scale, const Vector& shift, const wc::LaunchPlan& plan) {
    return bytes_of(wc::encode_parameters(view_of(image), image_is_bytes, view_of(low), view_of(high),
                                          views_of(parameters), element_bytes, channel_vector_of(scale),
                                          channel_vector_of(shift), plan.tiling));
  });
  m.def("decode_parameters", [](const View& low, const View& high, const View& image,
                                const std::array<View, 2 * wc::kFilters>& parameters, int element_bytes,
                                const wc::LaunchPlan& plan) {
    return bytes_of(wc::decode_parameters(view_of(low), view_of(high), view_of(image), views_of(parameters),
                                          element_bytes, plan.tiling));
  });

  py::class_<wc::BackwardLayout>(m, "BackwardLayout")
      .def_readonly("strips", &wc::BackwardLayout::strips)
      .def_readonly("bytes", &wc::BackwardLayout::bytes);
  m.attr("REDUCE_THREADS") = wc::kReduceThreads;
  m.attr("REDUCE_COLUMNS") = wc::kReduceColumns;
  m.attr("LONGEST_SUM") = wc::kLongestSum;
  const auto op_of = [](const std::string& op) { return op == "encode" ? wc::Op::kEncode : wc::Op::kDecode; };
  m.def("partial_floats", [=](const std::string& op) { return wc::partial_floats(op_of(op)); });
  m.def("partials_of_grid",
        [=](const std::string& op, int grid) { return wc::partials_of_grid(op_of(op), grid); });
  m.def("result_sizes", [=](const std::string& op) { return wc::result_sizes(op_of(op)); });
  m.def("backward_layout", [=](const std::string& op, wc::Mode mode, int capability, int shared_limit,
                               int64_t batch, int64_t half_height, int64_t half_width, int multiprocessors) {
    const int strips = wc::backward_strips(op_of(op), mode, capability, shared_limit, batch, half_height,
                                           half_width, multiprocessors);
    return wc::backward_layout(op_of(op), mode, strips, capability);
  });
  m.def("backward_plan", [](const wc::BackwardLayout& layout, int64_t batch, int64_t half_height,
                            int64_t half_width, int32_t multiprocessors, int32_t blocks_each) {
    return wc::plan(batch, half_height, half_width, {multiprocessors, blocks_each},
                    wc::backward_tile(layout.strips), wc::kBackwardThreads, layout.bytes);
  });
  m.def("backward_parameters",
        [=](const std::string& op, const View& full, bool image_is_bytes, const View& low, const View& high,
            const std::array<View, 2 * wc::kFilters>& parameters, int element_bytes,
            const wc::LaunchPlan& plan, const wc::BackwardLayout& layout, const View& grad_full,
            const View& grad_low, const View& grad_high, const Vector& scale, const Vector& shift,
            uint64_t partials, bool need_input, bool need_parameters, bool need_scale) {
          auto p =
              wc::backward_parameters(op_of(op), view_of(full), image_is_bytes, view_of(low), view_of(high),
                                      views_of(parameters), element_bytes, plan.tiling, layout);
          p.grad_full = wc::images_of(view_of(grad_full)), p.grad_low = wc::images_of(view_of(grad_low));
          p.grad_high = wc::images_of(view_of(grad_high));
          p.scale = channel_vector_of(scale), p.shift = channel_vector_of(shift);
          p.partials = reinterpret_cast<float*>(partials);
          p.need_input = need_input, p.need_parameters = need_parameters, p.need_scale = need_scale;
          return bytes_of(p);
        });
  m.def("reduce_parameters",
        [=](const std::string& op, uint64_t partials, int32_t blocks,
            const std::array<std::tuple<uint64_t, wc::NumberType>, wc::kResults>& results) {
          std::array<wc::ResultView, wc::kResults> views;
          for (size_t i = 0; i < results.size(); ++i) {
            views[i] = {reinterpret_cast<void*>(std::get<0>(results[i])), std::get<1>(results[i])};
          }
          return bytes_of(
              wc::reduce_parameters(op_of(op), reinterpret_cast<const float*>(partials), blocks, views));
        });
}
