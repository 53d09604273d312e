// conv3x3 and the packing of its weights on the CPU; see ops.cpp.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/tensors.h"
#include "cpu/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/run.h"
#include "cpu/tasks.h"

namespace wae {
namespace {

using checks::Checker, checks::Table;

Tensor conv3x3_pack(Tensor weight) {
  Checker("conv3x3_pack").check(Table::conv3x3_pack, weight);
  const std::array<int64_t, 3> sizes{panels_of(weight.size(0)), weight.size(1), kPackedFilter};
  Tensor result = new_tensor(weight, sizes, weight.scalar_type());
  std::vector<float> numbers(weight.numel());
  copy_floats(weight, numbers.data());
  pack_conv3x3(static_cast<float*>(result.mutable_data_ptr()), numbers.data(), weight.size(0),
               weight.size(1));
  return result;
}

Tensor conv3x3(Tensor input, Tensor packed, std::optional<Tensor> bias, int64_t out_channels, bool relu) {
  Checker("conv3x3").check(Table::conv3x3, std::array{out_channels}, input, packed, bias);
  checks::require(packed.is_contiguous(), "conv3x3",
                  "packed must be contiguous, as conv3x3_pack returns it, got other strides");
  const Kernels* kernels = selected_kernels();
  if (kernels == nullptr) {
    return std::get<0>(
        call_reference<std::tuple<Tensor>>("conv3x3", input, packed, bias, out_channels, relu));
  }
  const std::array<int64_t, 4> sizes{input.size(0), out_channels, input.size(2), input.size(3)};
  Tensor output = new_tensor(input, sizes, input.scalar_type(), MemoryFormat::ChannelsLast);
  std::vector<float> bias_numbers(bias ? out_channels : 0);
  if (bias) copy_floats(*bias, bias_numbers.data());
  const Conv3x3Args args{static_cast<const float*>(input.const_data_ptr()),
                         input.size(0),
                         input.size(1),
                         input.size(2),
                         input.size(3),
                         input.stride(0),
                         input.stride(1),
                         input.stride(2),
                         input.stride(3),
                         static_cast<const float*>(packed.const_data_ptr()),
                         bias ? bias_numbers.data() : nullptr,
                         static_cast<float*>(output.mutable_data_ptr()),
                         out_channels,
                         relu};
  run_tasks(plan_conv3x3(args, threads_for_tasks()),
            [&](const Conv3x3Task& task) { kernels->conv3x3(args, task); });
  return output;
}

}  // namespace
}  // namespace wae

STABLE_TORCH_LIBRARY_IMPL(wae, CPU, library) {
  library.impl("conv3x3_pack", TORCH_BOX(&wae::conv3x3_pack));
  library.impl("conv3x3", TORCH_BOX(&wae::conv3x3));
}
