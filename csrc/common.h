// What the kernels of every family share: argument checks that end in a sentence, and dispatch on the element type.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>
#include <optional>

// CORE_VERSION in ddlnl/_core.py is the same number. Raise both with every change of a schema in ops.cpp, or of what its
// tensors may be: a library built from older sources is then refused, where it would otherwise be called with arguments
// it does not know.
#define DDLNL_CORE_VERSION 4

#define DDLNL_TEXT_OF(number) #number
#define DDLNL_TEXT(macro) DDLNL_TEXT_OF(macro)

namespace ddlnl {

// Found in the bytes of every library before it is loaded, which would register its schemas and kernels.
__attribute__((used)) static const char version_marker[] = "ddlnl-core-version:" DDLNL_TEXT(DDLNL_CORE_VERSION);

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError with the sentence made of the remaining arguments.
#define DDLNL_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

// The type in which elements of type T are computed with.
template <typename T>
struct Computed {
  using type = T;
};
template <>
struct Computed<BFloat16> {
  using type = float;
};

// Calls body(T{}) with the element type of a floating tensor; `name` is the operator's, for the sentence.
template <typename Body>
void for_element_type(const Tensor& tensor, const char* name, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      DDLNL_CHECK(false, name, " takes float32, float64 or bfloat16.");
  }
}

// float64 for float64, else float32.
inline ScalarType computed_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

using OptionalTensor = std::optional<Tensor>;

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t axis = 0; axis < a.dim(); ++axis) {
    if (a.size(axis) != b.size(axis)) return false;
  }
  return true;
}

}  // namespace ddlnl
