// What every native operator needs: the stable ABI, argument checks that name what was wanted and what came.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <sstream>
#include <string>

namespace fastinpaint {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "(") << tensor.size(i);
  text << (tensor.dim() ? ")" : "()");
  return text.str();
}

inline void check_dim(const Tensor& tensor, int64_t dim, const char* name, const char* wanted) {
  STD_TORCH_CHECK(tensor.dim() == dim, name, " must be ", wanted, ", got shape ", shape_of(tensor));
}

inline void check_size(const Tensor& tensor, int64_t axis, int64_t size, const char* name, const char* why) {
  STD_TORCH_CHECK(tensor.size(axis) == size, name, " must have size ", size, " on axis ", axis, " (", why,
                  "), got shape ", shape_of(tensor));
}

inline void check_type(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must be ", torch::headeronly::toString(type),
                  ", got ", torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  name, " must be float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(type));
}

inline void check_cpu(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must lie on the CPU");
}

}  // namespace fastinpaint
