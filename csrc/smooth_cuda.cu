// Softplus + 2x2 average pool on CUDA, contiguous: value, tangent and the transpose of the tangent. Formulas: smooth.h.
//
// One thread per cell, or per pixel where pixels are written; neighbouring threads read neighbouring numbers.

#include "cuda.h"
#include "smooth.h"

namespace ddlnl {
namespace {

constexpr int kThreads = 256;

template <typename A>
__device__ A softplus(A z) {
  return max(z, A(0)) + log1p(exp(-abs(z)));
}

template <typename A>
__device__ A sigmoid(A z) {
  const A e = exp(-abs(z));
  return (z < A(0) ? e : A(1)) / (A(1) + e);
}

// out = scale times the sum over each cell of softplus(beta x), or with a direction of sigmoid(beta x) dx.
template <typename A>
__global__ void pool(const A* x, const A* dx, A* out, int64_t cells, int width, int half_height, int half_width,
                     int height, A beta, A scale) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= cells) return;
  const int64_t plane = at / (half_height * half_width);
  const int cell = at % (half_height * half_width), i = cell / half_width, j = cell % half_width;
  const int64_t first = (plane * height + 2 * i) * width + 2 * j;
  A sum = 0;
#pragma unroll
  for (int pixel = 0; pixel < 4; ++pixel) {
    const int64_t p = first + pixel / 2 * width + pixel % 2;
    const A z = beta * x[p];
    sum += dx ? sigmoid(z) * dx[p] : softplus(z);
  }
  out[at] = scale * sum;
}

template <typename A>
__global__ void unpool(const A* gradient, const A* x, A* out, int64_t pixels, int height, int width, A beta) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= pixels) return;
  const int64_t plane = at / (height * width);
  const int p = at % (height * width), i = p / width / 2, j = p % width / 2;
  const bool pooled = i < height / 2 && j < width / 2;
  out[at] = pooled ? sigmoid(beta * x[at]) * A(0.25) * gradient[(plane * (height / 2) + i) * (width / 2) + j] : A(0);
}

Tensor pooled(const Tensor& x, const Tensor* dx, double beta) {
  const Smooth call = checked_smooth(x, dx, nullptr, false);
  const DeviceGuard guard(x.get_device_index());
  Tensor out = empty_smooth(x, false, 2);
  const int64_t cells = out.numel();
  if (cells == 0) return out;
  for_float_or_double(x, [&](auto element) {
    using A = decltype(element);
    pool<A><<<grid(pieces(cells, kThreads), "softplus_pool"), kThreads, 0, stream_of(x)>>>(
        data<A>(x), dx ? data<A>(*dx) : nullptr, mutable_data<A>(out), cells, call.width, call.half_height(),
        call.half_width(), call.height, A(beta), A(dx ? 0.25 : 0.25 / beta));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

Tensor softplus_pool(Tensor x, double beta) { return pooled(x, nullptr, beta); }

Tensor softplus_pool_tangent(Tensor x, Tensor dx, double beta) { return pooled(x, &dx, beta); }

Tensor softplus_pool_backward(Tensor gradient, Tensor x, double beta) {
  const Smooth call = checked_smooth(x, nullptr, &gradient, false);
  const DeviceGuard guard(x.get_device_index());
  Tensor out = empty_smooth(x, false);
  if (x.numel() == 0) return out;
  for_float_or_double(x, [&](auto element) {
    using A = decltype(element);
    unpool<A><<<grid(pieces(x.numel(), kThreads), "softplus_pool"), kThreads, 0, stream_of(x)>>>(
        data<A>(gradient), data<A>(x), mutable_data<A>(out), x.numel(), call.height, call.width, A(beta));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CUDA, m) {
  m.impl("softplus_pool", TORCH_BOX(&softplus_pool));
  m.impl("softplus_pool_tangent", TORCH_BOX(&softplus_pool_tangent));
  m.impl("softplus_pool_backward", TORCH_BOX(&softplus_pool_backward));
}

}  // namespace ddlnl
