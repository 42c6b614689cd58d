// The tail of a ConvNet block (instance norm, scale and shift, ReLU, 2x2 average pool): arguments and per-plane formulas,
// shared by the kernels of all devices.
//
// Per plane of n = H W pixels, with xh = (x - mean) r, r = 1 / sqrt(var + eps), w and b the channel's scale and shift:
//   y  = w xh + b                    value   = pool(y where not y <= 0)       (a NaN is kept, as relu does)
//   dxh = r (dx - mean(dx) - xh s),  s = mean(dx xh)
//   dy = w dxh + dw xh + db          tangent = pool(dy where not y <= 0)
// Without the norm xh = x, dxh = dx: mean = 0, r = 1, and every mean over the plane below is left out.
#pragma once

#include "common.h"

#ifdef __CUDACC__
#define DDLNL_HOST_DEVICE __host__ __device__
#else
#define DDLNL_HOST_DEVICE
#endif

namespace ddlnl {

// Sizes of one call. `last`: the channels lie next to each other (channels-last), else the pixels of a plane do. The planes of
// a tensor without elements count as 0 x 0, whatever its sides: there is nothing to go through, and no product overflows.
struct Block {
  int64_t images, channels, height, width, groups;
  bool last, norm;

  int64_t plane() const { return height * width; }
  int64_t pooled_height() const { return height / 2; }
  int64_t pooled_width() const { return width / 2; }
  int64_t pooled() const { return pooled_height() * pooled_width(); }
  // Row of (G, C) weights that serves an image.
  int64_t group_of(int64_t image) const { return image / (images / groups); }
};

// The stride of an axis of length 1 says nothing, nor does any stride of an empty tensor. Where both layouts describe a
// tensor, its elements have one order, and it counts as contiguous, here and in Python.
inline bool is_channels_last(const Tensor& x) {
  if (x.numel() == 0) return true;
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3);
  const auto has = [&](int64_t axis, int64_t stride) { return x.size(axis) == 1 || x.stride(axis) == stride; };
  return has(1, 1) && has(3, c) && has(2, w * c) && has(0, h * w * c);
}

inline bool has_layout(const Tensor& x, bool last) { return last ? is_channels_last(x) : x.is_contiguous(); }

inline void check_rows(const OptionalTensor& rows, const Tensor& x, const char* what) {
  if (!rows) return;
  DDLNL_CHECK(same_device(*rows, x), "norm_relu_pool: all tensors must be on one device.");
  DDLNL_CHECK(rows->dim() == 2 && rows->size(1) == x.size(1) && rows->is_contiguous(), "norm_relu_pool: ", what,
              " must be contiguous of shape (G, C).");
  DDLNL_CHECK(rows->size(0) > 0 && x.size(0) % rows->size(0) == 0, "norm_relu_pool: ", what,
              " must have a number of rows that divides the number of images.");
}

// Checks everything that the kernels rely on; `like_x` have the shape of x, `like_out` that of the output.
inline Block checked_block(const Tensor& x, bool norm, std::initializer_list<const OptionalTensor*> rows,
                           std::initializer_list<const Tensor*> like_x, std::initializer_list<const Tensor*> like_out) {
  DDLNL_CHECK(x.dim() == 4, "norm_relu_pool takes (N, C, H, W) tensors.");
  Block block{x.size(0), x.size(1), x.size(2), x.size(3), 1, !x.is_contiguous(), norm};
  DDLNL_CHECK(has_layout(x, block.last), "norm_relu_pool: x must be contiguous or channels-last.");
  int64_t groups = 0;
  for (const OptionalTensor* one : rows) {
    check_rows(*one, x, "weights and biases");
    if (!*one) continue;
    DDLNL_CHECK((*one)->scalar_type() == computed_type(x),
                "norm_relu_pool: weights and biases are float64 for float64 images, else float32.");
    DDLNL_CHECK(groups == 0 || groups == (*one)->size(0),
                "norm_relu_pool: weights and biases must have equally many rows.");
    groups = (*one)->size(0);
  }
  if (groups) block.groups = groups;
  for (const Tensor* one : like_x) {
    DDLNL_CHECK(same_sizes(*one, x) && has_layout(*one, block.last) && one->scalar_type() == x.scalar_type(),
                "norm_relu_pool: x and its direction must agree in shape, memory layout and dtype.");
    DDLNL_CHECK(same_device(*one, x), "norm_relu_pool: all tensors must be on one device.");
  }
  for (const Tensor* one : like_out) {
    DDLNL_CHECK(one->dim() == 4 && one->size(0) == block.images && one->size(1) == block.channels &&
                    one->size(2) == x.size(2) / 2 && one->size(3) == x.size(3) / 2 &&
                    has_layout(*one, block.last) && one->scalar_type() == x.scalar_type(),
                "norm_relu_pool: a gradient must have the output's shape, memory layout and dtype.");
    DDLNL_CHECK(same_device(*one, x), "norm_relu_pool: all tensors must be on one device.");
  }
  if (x.numel() == 0) block.height = block.width = 0;
  return block;
}

// An uninitialised tensor of the layout of the block's x, of its size or with the sides divided.
inline Tensor empty_like_block(const Tensor& x, const Block& block, int64_t divisor = 1) {
  using torch::headeronly::MemoryFormat;
  const std::array<int64_t, 4> sizes{block.images, block.channels, x.size(2) / divisor, x.size(3) / divisor};
  return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                              block.last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// What the kernels keep per plane: (N, kinds, C).
enum Statistic : int64_t { kMean, kScale, kTangentMean, kProjection };
constexpr int64_t kValueStatistics = 2, kTangentStatistics = 4;

inline void check_statistics(const Tensor& statistics, const Tensor& x, int64_t kinds) {
  DDLNL_CHECK(statistics.dim() == 3 && statistics.size(0) == x.size(0) && statistics.size(1) == kinds &&
                  statistics.size(2) == x.size(1) && statistics.is_contiguous() &&
                  statistics.scalar_type() == computed_type(x) && same_device(statistics, x),
              "norm_relu_pool: the statistics must be those of the forward call.");
}

// Uninitialised rows (G, C) for a gradient; of size 0 where there are no rows to have one.
inline Tensor empty_rows(const Tensor& x, const Block& block, const OptionalTensor& rows) {
  if (!rows) return torch::stable::new_empty(x, std::array<int64_t, 1>{0}, computed_type(x));
  return torch::stable::new_empty(x, std::array<int64_t, 2>{block.groups, block.channels}, computed_type(x));
}

inline Tensor empty_statistics(const Tensor& x, int64_t kinds) {
  return torch::stable::new_empty(x, std::array<int64_t, 3>{x.size(0), kinds, x.size(1)}, computed_type(x));
}

// Sums over a plane: a and e are the gradients of y and dy.
enum Sum : int64_t { kA, kE, kAx, kEx, kEd, kSums };

// What a pixel's gradients are made of, once the sums are known: gdx = r (q - q0 - xh q1), gx = r (p - p0 - xh p1).
template <typename A>
struct Projections {
  A q0, q1, p0, p1;
};

template <typename A>
DDLNL_HOST_DEVICE inline Projections<A> projections(A share, A r, A w, A dw, A dmean, A s, A a, A e, A ax, A ex, A ed) {
  const A q0 = share * w * e, q1 = share * w * ex, q2 = share * w * ed;  // means of q, q xh, q dxh with q = w e
  return {q0, q1, share * (w * a + dw * e) - r * (s * q0 + q1 * dmean),
          share * (w * ax + dw * ex) - 2 * r * s * q1 + q2};
}

}  // namespace ddlnl
