// The tail of a block without a norm and with softplus: activation and 2x2 average pool. Formulas, shared by all devices.
//
// With z = beta x:  value = pool(softplus(z) / beta),  tangent = pool(sigmoid(z) dx),  backward = sigmoid(z) unpool(g),
// where pool takes the mean of a cell and unpool gives each of its pixels a quarter. Softplus is max(z, 0) + log(1 + e) and
// sigmoid 1 / (1 + e), or e / (1 + e) for a negative z, with e = exp(-|z|): nothing overflows, and no digit is lost.
#pragma once

#include "common.h"

namespace ddlnl {

// Sizes of one call; an odd side leaves its last row or column out of the pool. The planes of a tensor without elements count
// as 0 x 0, whatever its sides: there is nothing to go through, and no product overflows.
struct Smooth {
  int64_t images, channels, height, width;

  int64_t pixels() const { return height * width; }
  int64_t half_height() const { return height / 2; }
  int64_t half_width() const { return width / 2; }
  int64_t cells() const { return half_height() * half_width(); }
};

// `last`: the channels of a pixel lie next to each other, as the CPU's kernels want it; else the pixels of a plane do.
inline bool lies(const Tensor& x, bool last) {
  if (!last || x.numel() == 0) return x.is_contiguous();
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3);
  const auto has = [&](int64_t axis, int64_t stride) { return x.size(axis) == 1 || x.stride(axis) == stride; };
  return has(1, 1) && has(3, c) && has(2, w * c) && has(0, h * w * c);
}

// Checks everything that the kernels rely on; `dx` has the shape of x and `gradient` that of the output, where given.
inline Smooth checked_smooth(const Tensor& x, const Tensor* dx, const Tensor* gradient, bool last) {
  DDLNL_CHECK(x.dim() == 4 && lies(x, last), "softplus_pool takes (N, C, H, W) tensors that are ",
              last ? "channels-last." : "contiguous.");
  DDLNL_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
              "softplus_pool takes float32 or float64.");
  Smooth call{x.size(0), x.size(1), x.size(2), x.size(3)};
  for (const Tensor* one : {dx, gradient}) {
    if (!one) continue;
    DDLNL_CHECK(one->scalar_type() == x.scalar_type() && same_device(*one, x) && one->dim() == 4 && lies(*one, last),
                "softplus_pool: all tensors must agree in dtype, device and memory layout.");
  }
  DDLNL_CHECK(!dx || same_sizes(*dx, x), "softplus_pool: x and its direction must have one shape.");
  DDLNL_CHECK(!gradient || (gradient->size(0) == call.images && gradient->size(1) == call.channels &&
                            gradient->size(2) == call.half_height() && gradient->size(3) == call.half_width()),
              "softplus_pool: a gradient must have the shape of the output.");
  if (x.numel() == 0) call.height = call.width = 0;
  return call;
}

// An uninitialised tensor of the size of x, or with the sides divided.
inline Tensor empty_smooth(const Tensor& x, bool last, int64_t divisor = 1) {
  using torch::headeronly::MemoryFormat;
  const std::array<int64_t, 4> sizes{x.size(0), x.size(1), x.size(2) / divisor, x.size(3) / divisor};
  return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                              last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

template <typename Body>
void for_float_or_double(const Tensor& x, const Body& body) {
  x.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

}  // namespace ddlnl
