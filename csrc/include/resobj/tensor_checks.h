// Checks and dispatch on torch::stable::Tensor. Messages name the operator and the argument, as the
// Python wrappers do; these serve callers of torch.ops.resobj_d2.* directly.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <vector>

#include "resobj/huge_pages.h"

namespace resobj {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Argument {
  const char* name;
  const Tensor& tensor;
};

inline void check_devices(const char* op, std::initializer_list<Argument> arguments) {
  const Tensor& first = arguments.begin()->tensor;
  for (const Argument& argument : arguments) {
    STD_TORCH_CHECK(argument.tensor.is_cuda() == first.is_cuda() &&
                        argument.tensor.get_device_index() == first.get_device_index(),
                    op, ": ", argument.name, " is not on the device of ", arguments.begin()->name);
  }
}

inline void check_dtypes(const char* op, std::initializer_list<Argument> arguments) {
  const ScalarType first = arguments.begin()->tensor.scalar_type();
  STD_TORCH_CHECK(first == ScalarType::Float || first == ScalarType::Double, op, ": ",
                  arguments.begin()->name, " must be float32 or float64");
  for (const Argument& argument : arguments) {
    STD_TORCH_CHECK(argument.tensor.scalar_type() == first, op, ": ", argument.name,
                    " must have the dtype of ", arguments.begin()->name);
  }
}

// `tensor` has one element for each row of `rows`: its shape without the last dimension.
inline void check_one_per_row(const char* op, const Argument& argument, const Argument& rows) {
  const Tensor& tensor = argument.tensor;
  bool fits = tensor.dim() == rows.tensor.dim() - 1;
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) fits = tensor.size(d) == rows.tensor.size(d);
  STD_TORCH_CHECK(fits, op, ": ", argument.name, " must have the shape of ", rows.name,
                  " without the last dimension");
}

inline void check_same_shape(const char* op, const Argument& argument, const Argument& like) {
  const int64_t dim = like.tensor.dim();
  bool same = argument.tensor.dim() == dim;
  for (int64_t d = 0; same && d < dim; ++d) same = argument.tensor.size(d) == like.tensor.size(d);
  STD_TORCH_CHECK(same, op, ": ", argument.name, " must have the shape of ", like.name);
}

// torch::stable::contiguous goes through the dispatcher: as slow as a kernel on a few boxes.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A new contiguous tensor on the device of `like`, and by default of its dtype. It goes straight to
// the allocator, for the same reason.
inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         std::optional<ScalarType> dtype = std::nullopt) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d > 1; --d) {
    strides[d - 2] = strides[d - 1] * std::max<int64_t>(sizes[d - 1], 1);
  }
  int32_t type, device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  if (dtype.has_value()) {
    type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), type,
                                                         device_type, device_index, &handle));
  Tensor tensor(handle);
  if (tensor.is_cpu()) {
    const size_t bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
    if (bytes >= kHuge) ask_for_huge_pages(tensor.mutable_data_ptr(), bytes);
  }
  return tensor;
}

// Whether a number, rounded to T as the kernels do, is positive and its inverse is finite.
template <typename T>
bool is_positive(double value) {
  return value >= std::numeric_limits<T>::min() && value <= std::numeric_limits<T>::max();
}

// The same for the precision of a tensor that check_dtypes accepted.
inline bool is_positive(const Tensor& like, double value) {
  const bool is_double = like.scalar_type() == ScalarType::Double;
  return is_double ? is_positive<double>(value) : is_positive<float>(value);
}

// Whether `sizes`, none of them negative, sum to `total`; a sum that overflows does not.
inline bool sums_to(const std::vector<int64_t>& sizes, int64_t total) {
  for (const int64_t size : sizes) {
    if (size > total) return false;
    total -= size;
  }
  return total == 0;
}

// The incoming gradient of an operator whose result is a single number.
inline void check_grad_loss(const char* op, const Tensor& grad_loss, const Argument& input) {
  check_devices(op, {input, {"grad_loss", grad_loss}});
  check_dtypes(op, {input, {"grad_loss", grad_loss}});
  STD_TORCH_CHECK(grad_loss.numel() == 1, op, ": grad_loss must be a scalar");
}

// Returns f(T()), with T the type of a tensor that check_dtypes accepted.
template <typename F>
auto dispatch_float(const Tensor& tensor, const F& f) {
  if (tensor.scalar_type() == ScalarType::Double) return f(double());
  return f(float());
}

}  // namespace resobj
