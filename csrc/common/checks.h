// Argument checks from the tables of wae_kernels/arguments.inc, for the compiled kernels. wae_kernels/checks.py
// interprets the same tables for everything else; tests/kernels/test_bad_input.py compares the two.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/sizes.h"

namespace wae {

using torch::headeronly::Layout;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr int kParameters = 10;
using Parameters = std::array<Tensor, kParameters>;

// half_size of a size up to 2^63 - 1, which a tensor without elements may have: an unsigned sum does not overflow.
constexpr int64_t half_of(int64_t size) { return half_size<uint64_t>(size); }

namespace checks {

// ------------------------------------------------------------------------------------------- the table

enum class Table {
  encoder,
  encode_backward,
  encode_int8,
  decoder,
  decode,
  decode_backward,
  score_decoder,
  decode_scores_backward,
  conv3x3_pack,
  conv3x3
};
enum class Dtype { pixels, network, parameter, floating, bytes, uint8, int8, int16, int32, float32, numbers };
enum Size : int64_t {  // negative values stand for names; a positive size is itself
  batch = -11,
  height,
  width,
  half_height,
  half_width,
  trunk_width,
  classes,
  features,
  out_channels,
  channels,
  panels
};
inline constexpr std::array<const char*, 11> kSizeNames{
    "batch",   "height",   "width",        "half_height", "half_width", "trunk_width",
    "classes", "features", "out_channels", "channels",    "panels"};

struct Argument {
  Table table;
  const char* name;
  Dtype dtype;
  std::array<int64_t, 4> sizes;  // then zeros
};

inline constexpr Argument kArguments[] = {
#define WAE_ARGUMENT(table, name, dtype, ...) {Table::table, #name, Dtype::dtype, {__VA_ARGS__}},
#include "arguments.inc"
#undef WAE_ARGUMENT
};

// ------------------------------------------------------------------------------------------- names and text

// Throws std::runtime_error if `condition` does not hold. The message is only put together then.
template <class... Parts>
void require(bool condition, const char* op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "wae::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <class Key, size_t kCount>
std::string name_in(const std::pair<Key, const char*> (&names)[kCount], Key key, const char* otherwise) {
  for (const auto& [known, name] : names) {
    if (known == key) return name;
  }
  return otherwise;
}

inline std::string dtype_name(ScalarType dtype) {
  constexpr std::pair<ScalarType, const char*> kNames[] = {{ScalarType::Byte, "uint8"},
                                                           {ScalarType::Char, "int8"},
                                                           {ScalarType::Short, "int16"},
                                                           {ScalarType::Int, "int32"},
                                                           {ScalarType::Long, "int64"},
                                                           {ScalarType::Half, "float16"},
                                                           {ScalarType::Float, "float32"},
                                                           {ScalarType::Double, "float64"},
                                                           {ScalarType::BFloat16, "bfloat16"},
                                                           {ScalarType::Bool, "bool"},
                                                           {ScalarType::UInt16, "uint16"},
                                                           {ScalarType::UInt32, "uint32"},
                                                           {ScalarType::UInt64, "uint64"},
                                                           {ScalarType::Float8_e5m2, "float8_e5m2"},
                                                           {ScalarType::Float8_e4m3fn, "float8_e4m3fn"},
                                                           {ScalarType::Float8_e5m2fnuz, "float8_e5m2fnuz"},
                                                           {ScalarType::Float8_e4m3fnuz, "float8_e4m3fnuz"},
                                                           {ScalarType::ComplexHalf, "complex32"},
                                                           {ScalarType::ComplexFloat, "complex64"},
                                                           {ScalarType::ComplexDouble, "complex128"},
                                                           {ScalarType::Undefined, "another dtype"}};
  return name_in(kNames, dtype, torch::headeronly::toString(dtype));
}

inline std::string layout_name(Layout layout) {
  constexpr std::pair<Layout, const char*> kNames[] = {
      {Layout::Sparse, "torch.sparse_coo"},    {Layout::SparseCsr, "torch.sparse_csr"},
      {Layout::SparseCsc, "torch.sparse_csc"}, {Layout::SparseBsr, "torch.sparse_bsr"},
      {Layout::SparseBsc, "torch.sparse_bsc"}, {Layout::Mkldnn, "torch._mkldnn"}};
  return name_in(kNames, layout, "another layout");
}

inline std::string memory_format_name(MemoryFormat format) {
  constexpr std::pair<MemoryFormat, const char*> kNames[] = {
      {MemoryFormat::Preserve, "torch.preserve_format"},
      {MemoryFormat::ChannelsLast3d, "torch.channels_last_3d"}};
  return name_in(kNames, format, "another one");
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

// A tensor's device as torch numbers it, and below its dtype. They are compared for every argument of every call, so
// the check must not try each dtype or device type in turn.
struct DeviceNumber {
  int32_t type = 0, index = 0;
  bool operator==(const DeviceNumber&) const = default;
};
inline DeviceNumber device_number(const Tensor& tensor) {
  DeviceNumber device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  return device;
}
inline int32_t dtype_number(const Tensor& tensor) {
  int32_t number = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &number));
  return number;
}

// A tensor's dtype; Undefined for those that torch's headers do not name, which no op takes.
inline ScalarType dtype_of(const Tensor& tensor) {
  try {
    return tensor.scalar_type();
  } catch (const std::runtime_error&) {
    return ScalarType::Undefined;
  }
}

inline bool is_in_16_bits(ScalarType dtype) {
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}
inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || is_in_16_bits(dtype);
}

// Checks the dtype and memory format that a caller requests for the results, as check_results in checks.py does.
inline void check_results(const char* op, std::optional<ScalarType> dtype,
                          std::optional<MemoryFormat> memory_format) {
  if (dtype && !is_floating(*dtype)) {
    require(false, op, "dtype must be float32, float16, bfloat16 or float64, got ", dtype_name(*dtype));
  }
  if (memory_format && *memory_format != MemoryFormat::Contiguous &&
      *memory_format != MemoryFormat::ChannelsLast) {
    require(false, op, "memory_format must be torch.contiguous_format or torch.channels_last, got ",
            memory_format_name(*memory_format));
  }
}

// ------------------------------------------------------------------------------------------- the interpreter

// Checks a call's arguments against rows of the tables, with the sizes and dtypes that earlier arguments fixed.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) { sizes_.fill(kOpen); }

  // Checks the arguments of a table, in its order: tensors, optional tensors, arrays of tensors, or integers.
  template <class... Values>
  void check(Table table, const Values&... values) {
    const auto is_row = [table](const Argument& row) { return row.table == table; };
    row_ = std::find_if(std::begin(kArguments), std::end(kArguments), is_row);
    (next(values), ...);
  }

 private:
  static constexpr int64_t kOpen = -1;
  static constexpr int32_t kNoDtype = -1;

  // What the first argument of a kind fixed for the others.
  struct Decided {
    const char* name = nullptr;
    ScalarType dtype = ScalarType::Undefined;
    int32_t number = kNoDtype;
  };

  template <size_t kCount>
  void next(const std::array<Tensor, kCount>& parameters) {
    for (const Tensor& parameter : parameters) next(parameter);
  }

  void next(const std::optional<Tensor>& tensor) {
    if (tensor) {
      next(*tensor);
    } else {
      ++row_;
    }
  }

  void next(std::span<const int64_t> numbers) {
    check_sizes(numbers);
    ++row_;
  }

  void next(const Tensor& tensor) {
    int32_t layout = 0;  // torch 2.10's headers have no Tensor::layout()
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
    if (layout != aoti_torch_layout_strided())
      fail("be a dense tensor", layout_name(static_cast<Layout>(layout)));
    const auto sizes = tensor.sizes();
    check_sizes({sizes.data(), sizes.size()});
    const int32_t dtype = dtype_number(tensor);
    if (dtype != decided_number()) check_dtype(tensor);
    const DeviceNumber device = device_number(tensor);
    if (first_ == nullptr) {
      first_ = &tensor;
      first_name_ = row_->name;
      first_device_ = device;
    } else if (device != first_device_) {
      fail(std::string("be on ") + first_name_ + "'s device " + device_name(*first_), device_name(tensor));
    }
    check_memory(tensor, {sizes.data(), sizes.size()}, dtype);
    ++row_;
  }

  // Memory may be freed under a tensor: sharding and offloading do it with untyped_storage().resize_(0). check_memory in
  // checks.py is the same for Triton's kernels. The reference leaves it to PyTorch, whose convolutions refuse parameters
  // without memory.
  void check_memory(const Tensor& tensor, std::span<const int64_t> sizes, int32_t dtype) const {
    int64_t* strides = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
    int64_t end = tensor.storage_offset() + 1, bytes = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0) return;
      end += (sizes[i] - 1) * strides[i];
    }
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
    const int64_t needed = end * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
    if (needed > bytes) {
      fail("have " + std::to_string(needed) + " bytes of memory", std::to_string(bytes));
    }
  }

  // torch's number of the dtype that a tensor of this row must have, if earlier arguments have fixed it.
  int32_t decided_number() const {
    return row_->dtype == Dtype::network     ? network_.number
           : row_->dtype == Dtype::parameter ? parameter_.number
                                             : kNoDtype;
  }

  static int index_of(int64_t size) { return static_cast<int>(size - batch); }

  // The value that a size must have; kOpen if no earlier argument has fixed it.
  int64_t known(int64_t size) const {
    if (size > 0) return size;
    if (size == panels)
      return (sizes_[index_of(out_channels)] - 1) / 16 + 1;  // out_channels >= 1; cannot overflow
    if (size == half_height || size == half_width) {
      const int64_t whole = sizes_[index_of(size == half_height ? height : width)];
      if (whole != kOpen) return half_of(whole);
    }
    return sizes_[index_of(size)];
  }

  // The known half of a height or width; kOpen if it is not known.
  int64_t known_half(int64_t size) const {
    if (size != height && size != width) return kOpen;
    return sizes_[index_of(size == height ? half_height : half_width)];
  }

  bool fits(int64_t size, int64_t got) const {
    if (const int64_t number = known(size); number != kOpen) return got == number;
    if (const int64_t half = known_half(size); half != kOpen) {
      return got > 0 && half_of(got) == half;
    }
    return size == batch || got >= 1;
  }

  std::string text(int64_t size) const {
    if (const int64_t number = known(size); number != kOpen) return std::to_string(number);
    if (const int64_t half = known_half(size); half != kOpen) {
      const uint64_t even = 2 * static_cast<uint64_t>(half);  // may be larger than any size
      return std::to_string(even - 1) + " or " + std::to_string(even);
    }
    return std::string(kSizeNames[index_of(size)]) + (size == batch ? "" : " >= 1");
  }

  void check_sizes(std::span<const int64_t> got) {
    const auto end = std::find(row_->sizes.begin(), row_->sizes.end(), 0);
    const std::span<const int64_t> wanted(row_->sizes.begin(), end);
    bool same = got.size() == wanted.size();
    for (size_t i = 0; same && i < got.size(); ++i) same = fits(wanted[i], got[i]);
    if (!same) {
      const auto name = [this](int64_t size) { return text(size); };
      const auto number = [](int64_t size) { return std::to_string(size); };
      fail((row_->dtype == Dtype::numbers ? "be " : "have shape ") + joined(wanted, name),
           joined(got, number));
    }
    for (size_t i = 0; i < got.size(); ++i) {
      if (wanted[i] < 0) sizes_[index_of(wanted[i])] = got[i];
    }
  }

  template <class F>
  static std::string joined(std::span<const int64_t> sizes, const F& text) {
    std::string all = "(";
    for (size_t i = 0; i < sizes.size(); ++i) all += (i > 0 ? ", " : "") + text(sizes[i]);
    return all + ")";
  }

  // The dtype that a rule with a dtype's name accepts; Undefined for the other rules.
  static ScalarType only_dtype(Dtype rule) {
    switch (rule) {
      case Dtype::uint8:
        return ScalarType::Byte;
      case Dtype::int8:
        return ScalarType::Char;
      case Dtype::int16:
        return ScalarType::Short;
      case Dtype::int32:
        return ScalarType::Int;
      case Dtype::float32:
        return ScalarType::Float;
      default:
        return ScalarType::Undefined;
    }
  }

  void check_dtype(const Tensor& tensor) {
    const ScalarType dtype = dtype_of(tensor);
    const Dtype rule = row_->dtype;
    if (rule == Dtype::pixels && dtype == ScalarType::Byte) return;
    if (rule == Dtype::bytes) {
      if (dtype != ScalarType::Byte && dtype != ScalarType::Char) fail("be uint8 or int8", dtype_name(dtype));
      return;
    }
    if (const ScalarType only = only_dtype(rule); only != ScalarType::Undefined) {
      if (dtype != only) fail("be " + dtype_name(only), dtype_name(dtype));
    } else if (rule == Dtype::parameter) {
      check_parameter(tensor, dtype);
    } else if (rule != Dtype::floating && network_.name != nullptr) {
      if (dtype != network_.dtype) {
        fail("be " + dtype_name(network_.dtype) + " like " + network_.name, dtype_name(dtype));
      }
    } else if (!is_floating(dtype)) {
      fail(std::string("be ") + (rule == Dtype::pixels ? "uint8, " : "") +
               "float32, float16, bfloat16 or float64",
           dtype_name(dtype));
    } else if (rule != Dtype::floating) {
      network_ = {row_->name, dtype, dtype_number(tensor)};
    }
  }

  void check_parameter(const Tensor& tensor, ScalarType dtype) {
    const Decided& like = parameter_.name != nullptr ? parameter_ : network_;
    const bool or_float32 = parameter_.name == nullptr && is_in_16_bits(like.dtype);
    if (dtype != like.dtype && !(or_float32 && dtype == ScalarType::Float)) {
      fail("be " + dtype_name(like.dtype) + " like " + like.name + (or_float32 ? ", or float32" : ""),
           dtype_name(dtype));
    }
    parameter_ = {row_->name, dtype, dtype_number(tensor)};
  }

  [[noreturn]] void fail(const std::string& must, const std::string& got) const {
    require(false, op_, row_->name, " must ", must, ", got ", got);
    __builtin_unreachable();
  }

  const char* op_;
  const Argument* row_ = nullptr;
  std::array<int64_t, kSizeNames.size()> sizes_;
  const Tensor* first_ = nullptr;
  const char* first_name_ = nullptr;
  DeviceNumber first_device_;
  Decided network_, parameter_;
};

}  // namespace checks
}  // namespace wae
