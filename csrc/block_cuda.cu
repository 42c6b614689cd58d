// Instance norm + ReLU + 2x2 average pool on CUDA: value, gradient, and value with tangent. Formulas: block.h.
//
// One thread block per (image, channel) plane. A plane is read once, 16 bytes at a time, into shared memory, where all
// passes over it run; the result goes back the same way. Sums are trees of fixed shape, so a run repeats exactly.

#include <algorithm>

#include "block.h"
#include "cuda.h"

namespace ddlnl {
namespace {

constexpr int kMostWarps = 8;

// ---------------------------------------------------------------- a plane in shared memory

// Every thread gets the sums over the block of all threads' numbers. `scratch` holds kCount * kMostWarps numbers.
template <int kCount, typename A>
__device__ void block_sums(A (&mine)[kCount], A* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    for (int far = kWarp / 2; far > 0; far /= 2) mine[k] += __shfl_xor_sync(0xffffffffu, mine[k], far);
  }
  __syncthreads();  // the sums of the call before this one have been read
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) scratch[k * kMostWarps + warp] = mine[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    mine[k] = 0;
    for (int other = 0; other < warps; ++other) mine[k] += scratch[k * kMostWarps + other];
  }
}

// Sizes of one plane and where it belongs.
struct Plane {
  int height, width, size, half_height, half_width, pooled;
  int64_t at, image, channel, row;  // plane number; row of the (G, C) weights, times C, plus the channel

  __device__ explicit Plane(const Block& block)
      : height(block.height),
        width(block.width),
        size(height * width),
        half_height(height / 2),
        half_width(width / 2),
        pooled(half_height * half_width),
        at(blockIdx.x),
        image(at / block.channels),
        channel(at % block.channels),
        row(image / (block.images / block.groups) * block.channels + channel) {}

  // The pooled pixel of a pixel, or -1 where an odd side leaves the pixel over.
  __device__ int cell(int p) const {
    const int i = p / width / 2, j = p % width / 2;
    return i < half_height && j < half_width ? i * half_width + j : -1;
  }
  // The first pixel of a pooled pixel.
  __device__ int corner(int q) const { return 2 * (q / half_width) * width + 2 * (q % half_width); }
};

template <typename A>
struct Rows {
  A w, b, dw, db;
};

template <typename A>
__device__ Rows<A> rows_of(const Plane& plane, const A* w, const A* b, const A* dw, const A* db) {
  return {w ? w[plane.row] : A(1), b ? b[plane.row] : A(0), dw ? dw[plane.row] : A(0), db ? db[plane.row] : A(0)};
}

// Statistics of one plane and where the kernel keeps or finds them: (N, kinds, C).
template <typename A>
struct Kept {
  A* base;
  int64_t kinds;

  __device__ A& operator()(const Plane& plane, const Block& block, Statistic kind) const {
    return base[(plane.image * kinds + kind) * block.channels + plane.channel];
  }
};

// Replaces x by xh, and returns 1 / sqrt(var + eps).
template <typename A>
__device__ A normalise(A* x, const Plane& plane, const Block& block, A eps, Kept<A> kept, A* scratch) {
  A mean = 0, r = 1;
  if (block.norm) {
    A sum[1] = {0};
    for (int p = threadIdx.x; p < plane.size; p += blockDim.x) sum[0] += x[p];
    block_sums(sum, scratch);
    mean = sum[0] / A(plane.size);
    A squares[1] = {0};
    for (int p = threadIdx.x; p < plane.size; p += blockDim.x) squares[0] += (x[p] - mean) * (x[p] - mean);
    block_sums(squares, scratch);
    r = A(1) / sqrt(squares[0] / A(plane.size) + eps);
    for (int p = threadIdx.x; p < plane.size; p += blockDim.x) x[p] = (x[p] - mean) * r;
  }
  if (threadIdx.x == 0) {
    kept(plane, block, kMean) = mean;
    kept(plane, block, kScale) = r;
  }
  __syncthreads();
  return r;
}

// Replaces dx by dxh, given xh.
template <typename A>
__device__ void normalise_tangent(const A* xh, A* dx, A r, const Plane& plane, const Block& block, Kept<A> kept,
                                  A* scratch) {
  A dmean = 0, s = 0;
  if (block.norm) {
    A sums[2] = {0, 0};
    for (int p = threadIdx.x; p < plane.size; p += blockDim.x) {
      sums[0] += dx[p];
      sums[1] += dx[p] * xh[p];
    }
    block_sums(sums, scratch);
    dmean = sums[0] / A(plane.size);
    s = sums[1] / A(plane.size);
    for (int p = threadIdx.x; p < plane.size; p += blockDim.x) dx[p] = r * (dx[p] - dmean - xh[p] * s);
  }
  if (threadIdx.x == 0) {
    kept(plane, block, kTangentMean) = dmean;
    kept(plane, block, kProjection) = s;
  }
  __syncthreads();
}

template <typename A>
__device__ A* shared_numbers() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<A*>(bytes);
}

// ---------------------------------------------------------------- kernels; the scratch of the sums comes last

template <typename T, typename A>
__global__ void value_kernel(const T* x, const A* w, const A* b, T* out, Kept<A> kept, A eps, Block block) {
  const Plane plane(block);
  A *xh = shared_numbers<A>(), *pooled = xh + plane.size, *scratch = pooled + plane.pooled;
  const Rows<A> rows = rows_of<A>(plane, w, b, nullptr, nullptr);
  load(x + plane.at * plane.size, xh, plane.size);
  __syncthreads();
  normalise(xh, plane, block, eps, kept, scratch);
  const auto relu = [&](int p) {
    const A y = rows.w * xh[p] + rows.b;
    return y <= 0 ? A(0) : y;
  };
  for (int q = threadIdx.x; q < plane.pooled; q += blockDim.x) {
    const int p = plane.corner(q);
    pooled[q] = A(0.25) * (relu(p) + relu(p + 1) + (relu(p + plane.width) + relu(p + plane.width + 1)));
  }
  __syncthreads();
  store(pooled, out + plane.at * plane.pooled, plane.pooled);
}

template <typename T, typename A>
__global__ void backward_kernel(const T* g, const T* x, const A* w, const A* b, T* dx, A* shares_w, A* shares_b,
                                Kept<A> kept, Block block) {
  const Plane plane(block);
  A *xs = shared_numbers<A>(), *gs = xs + plane.size, *scratch = gs + plane.pooled;
  const Rows<A> rows = rows_of<A>(plane, w, b, nullptr, nullptr);
  load(x + plane.at * plane.size, xs, plane.size);
  load(g + plane.at * plane.pooled, gs, plane.pooled);
  const A mean = kept(plane, block, kMean), r = kept(plane, block, kScale);
  __syncthreads();
  const auto gradient_of_y = [&](int p, A xh) {
    const int q = plane.cell(p);
    return q < 0 || rows.w * xh + rows.b <= 0 ? A(0) : A(0.25) * gs[q];
  };
  A sums[2] = {0, 0};
  for (int p = threadIdx.x; p < plane.size; p += blockDim.x) {
    const A xh = (xs[p] - mean) * r, d = gradient_of_y(p, xh);
    sums[0] += d;
    sums[1] += d * xh;
  }
  block_sums(sums, scratch);
  if (threadIdx.x == 0) {
    shares_b[plane.at] = sums[0];
    shares_w[plane.at] = sums[1];
  }
  const A share = A(1) / A(plane.size);
  for (int p = threadIdx.x; p < plane.size; p += blockDim.x) {
    const A xh = (xs[p] - mean) * r;
    const A d = gradient_of_y(p, xh);
    xs[p] = block.norm ? rows.w * r * (d - share * sums[0] - xh * (share * sums[1])) : rows.w * d;
  }
  __syncthreads();
  store(xs, dx + plane.at * plane.size, plane.size);
}

template <typename T, typename A>
__global__ void tangent_kernel(const T* x, const T* dx, const A* w, const A* dw, const A* b, const A* db, T* out,
                               T* dout, Kept<A> kept, A eps, Block block) {
  const Plane plane(block);
  A *xh = shared_numbers<A>(), *dxh = xh + plane.size, *pooled = dxh + plane.size;
  A *dpooled = pooled + plane.pooled, *scratch = dpooled + plane.pooled;
  const Rows<A> rows = rows_of<A>(plane, w, b, dw, db);
  load(x + plane.at * plane.size, xh, plane.size);
  load(dx + plane.at * plane.size, dxh, plane.size);
  __syncthreads();
  const A r = normalise(xh, plane, block, eps, kept, scratch);
  normalise_tangent(xh, dxh, r, plane, block, kept, scratch);
  for (int q = threadIdx.x; q < plane.pooled; q += blockDim.x) {
    A value = 0, tangent = 0;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int p = plane.corner(q) + corner % 2 + corner / 2 * plane.width;
      const A y = rows.w * xh[p] + rows.b, dy = rows.w * dxh[p] + (dw ? rows.dw * xh[p] : A(0)) + rows.db;
      value += y <= 0 ? A(0) : y;
      tangent += y <= 0 ? A(0) : dy;
    }
    pooled[q] = A(0.25) * value;
    dpooled[q] = A(0.25) * tangent;
  }
  __syncthreads();
  store(pooled, out + plane.at * plane.pooled, plane.pooled);
  store(dpooled, dout + plane.at * plane.pooled, plane.pooled);
}

template <typename T, typename A>
__global__ void tangent_backward_kernel(const T* g, const T* dg, const T* x, const T* dx, const A* w, const A* dw,
                                        const A* b, T* gx, T* gdx, A* shares, Kept<A> kept, Block block) {
  const Plane plane(block);
  A *xs = shared_numbers<A>(), *dxs = xs + plane.size, *gs = dxs + plane.size;
  A *dgs = gs + plane.pooled, *scratch = dgs + plane.pooled;
  const Rows<A> rows = rows_of<A>(plane, w, b, dw, nullptr);
  load(x + plane.at * plane.size, xs, plane.size);
  load(dx + plane.at * plane.size, dxs, plane.size);
  load(g + plane.at * plane.pooled, gs, plane.pooled);
  load(dg + plane.at * plane.pooled, dgs, plane.pooled);
  const A mean = kept(plane, block, kMean), r = kept(plane, block, kScale);
  const A dmean = kept(plane, block, kTangentMean), s = kept(plane, block, kProjection);
  __syncthreads();
  const auto gradients_of_y = [&](int p, A xh, A& a, A& e) {
    const int q = plane.cell(p);
    const bool off = q < 0 || rows.w * xh + rows.b <= 0;
    a = off ? A(0) : A(0.25) * gs[q];
    e = off ? A(0) : A(0.25) * dgs[q];
  };
  A sums[kSums] = {};
  for (int p = threadIdx.x; p < plane.size; p += blockDim.x) {
    const A xh = (xs[p] - mean) * r, dxh = block.norm ? r * (dxs[p] - dmean - xh * s) : dxs[p];
    A a, e;
    gradients_of_y(p, xh, a, e);
    sums[kA] += a;
    sums[kE] += e;
    sums[kAx] += a * xh;
    sums[kEx] += e * xh;
    sums[kEd] += e * dxh;
  }
  block_sums(sums, scratch);
  const int64_t planes = gridDim.x;
  if (threadIdx.x == 0) {
    shares[plane.at] = sums[kAx] + sums[kEd];           // w
    shares[planes + plane.at] = sums[kEx];              // dw
    shares[2 * planes + plane.at] = sums[kA];           // b
    shares[3 * planes + plane.at] = sums[kE];           // db
  }
  const A share = A(1) / A(plane.size);
  const Projections<A> t = projections(share, r, rows.w, rows.dw, dmean, s, sums[kA], sums[kE], sums[kAx], sums[kEx],
                                       sums[kEd]);
  for (int p = threadIdx.x; p < plane.size; p += blockDim.x) {
    const A xh = (xs[p] - mean) * r;
    A a, e;
    gradients_of_y(p, xh, a, e);
    const A q = rows.w * e;
    const A gxh = rows.w * a + rows.dw * e - (block.norm ? r * (q * s + dxs[p] * t.q1) : A(0));
    xs[p] = block.norm ? r * (gxh - t.p0 - xh * t.p1) : gxh;
    dxs[p] = block.norm ? r * (q - t.q0 - xh * t.q1) : q;
  }
  __syncthreads();
  store(xs, gx + plane.at * plane.size, plane.size);
  store(dxs, gdx + plane.at * plane.size, plane.size);
}

// One thread per (group, channel): the shares of the group's images, added in their order.
template <typename A>
__global__ void sum_images(const A* shares, A* out, Block block) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= block.groups * block.channels) return;
  const int64_t run = block.images / block.groups, first = at / block.channels * run;
  A total = 0;
  for (int64_t image = first; image < first + run; ++image) {
    total += shares[image * block.channels + at % block.channels];
  }
  out[at] = total;
}

// ---------------------------------------------------------------- operators

// Launches a kernel with one block per plane and shared memory for `planes` planes, `pooled` pooled ones and the sums.
template <typename A, typename... Parameters, typename... Arguments>
void over_planes(void (*kernel)(Parameters...), const Tensor& x, const Block& block, int planes, int pooled,
                 int counts, Arguments... arguments) {
  const int64_t blocks = block.images * block.channels;
  if (blocks == 0) return;
  const int64_t numbers = planes * block.plane() + pooled * block.pooled() + counts * kMostWarps;
  const int64_t shared = numbers * static_cast<int64_t>(sizeof(A));
  reserve_shared(kernel, shared, 0, x.get_device_index(), "norm_relu_pool");
  const int64_t warps = std::clamp<int64_t>(block.plane() / (4 * kWarp), 1, kMostWarps);
  kernel<<<grid(blocks, "norm_relu_pool"), static_cast<unsigned>(warps * kWarp), shared, stream_of(x)>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename A>
Tensor summed(const Tensor& x, const Block& block, const OptionalTensor& rows, const A* shares) {
  const Tensor result = empty_rows(x, block, rows);
  if (!rows) return result;
  constexpr int kThreads = 64;
  const unsigned blocks = grid(pieces(block.groups * block.channels, kThreads), "norm_relu_pool");
  if (blocks == 0) return result;
  sum_images<A><<<blocks, kThreads, 0, stream_of(x)>>>(shares, mutable_data<A>(result), block);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

// checked_block, and what these kernels cannot read.
Block cuda_block(const Tensor& x, bool norm, std::initializer_list<const OptionalTensor*> rows,
                 std::initializer_list<const Tensor*> like_x, std::initializer_list<const Tensor*> like_out) {
  const Block block = checked_block(x, norm, rows, like_x, like_out);
  DDLNL_CHECK(!block.last, "norm_relu_pool on CUDA takes contiguous tensors, not channels-last ones.");
  return block;
}

std::tuple<Tensor, Tensor> norm_relu_pool(Tensor x, OptionalTensor weight, OptionalTensor bias, double eps, bool norm) {
  const Block block = cuda_block(x, norm, {&weight, &bias}, {}, {});
  const DeviceGuard guard(x.get_device_index());
  Tensor out = empty_like_block(x, block, 2);
  Tensor statistics = empty_statistics(x, kValueStatistics);
  for_element_type(x, "norm_relu_pool", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const Kept<A> kept{mutable_data<A>(statistics), kValueStatistics};
    over_planes<A>(value_kernel<T, A>, x, block, 1, 1, 1, data<T>(x), data_or_null<A>(weight), data_or_null<A>(bias),
                   mutable_data<T>(out), kept, A(eps), block);
  });
  return {out, statistics};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_backward(Tensor gradient, Tensor x, OptionalTensor weight,
                                                           OptionalTensor bias, Tensor statistics, bool norm) {
  const Block block = cuda_block(x, norm, {&weight, &bias}, {}, {&gradient});
  check_statistics(statistics, x, kValueStatistics);
  const DeviceGuard guard(x.get_device_index());
  Tensor dx = empty_like_block(x, block), dweight = dx, dbias = dx;
  const int64_t planes = block.images * block.channels;
  Tensor shares = torch::stable::new_empty(x, std::array<int64_t, 2>{2, planes}, computed_type(x));
  for_element_type(x, "norm_relu_pool", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const Kept<A> kept{mutable_data<A>(statistics), kValueStatistics};
    A* const sums = mutable_data<A>(shares);
    over_planes<A>(backward_kernel<T, A>, x, block, 1, 1, 2, data<T>(gradient), data<T>(x), data_or_null<A>(weight),
                   data_or_null<A>(bias), mutable_data<T>(dx), sums, sums + planes, kept, block);
    dweight = summed<A>(x, block, weight, sums);
    dbias = summed<A>(x, block, bias, sums + planes);
  });
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_tangent(Tensor x, Tensor dx, OptionalTensor weight,
                                                          OptionalTensor dweight, OptionalTensor bias,
                                                          OptionalTensor dbias, double eps, bool norm) {
  const Block block = cuda_block(x, norm, {&weight, &dweight, &bias, &dbias}, {&dx}, {});
  const DeviceGuard guard(x.get_device_index());
  Tensor out = empty_like_block(x, block, 2);
  Tensor dout = empty_like_block(x, block, 2);
  Tensor statistics = empty_statistics(x, kTangentStatistics);
  for_element_type(x, "norm_relu_pool_tangent", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const Kept<A> kept{mutable_data<A>(statistics), kTangentStatistics};
    over_planes<A>(tangent_kernel<T, A>, x, block, 2, 2, 2, data<T>(x), data<T>(dx), data_or_null<A>(weight),
                   data_or_null<A>(dweight), data_or_null<A>(bias), data_or_null<A>(dbias), mutable_data<T>(out),
                   mutable_data<T>(dout), kept, A(eps), block);
  });
  return {out, dout, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_relu_pool_tangent_backward(
    Tensor gradient, Tensor dgradient, Tensor x, Tensor dx, OptionalTensor weight, OptionalTensor dweight,
    OptionalTensor bias, OptionalTensor dbias, Tensor statistics, bool norm) {
  const Block block = cuda_block(x, norm, {&weight, &dweight, &bias, &dbias}, {&dx}, {&gradient, &dgradient});
  check_statistics(statistics, x, kTangentStatistics);
  const DeviceGuard guard(x.get_device_index());
  Tensor gx = empty_like_block(x, block);
  Tensor gdx = empty_like_block(x, block), gw = gx, gdw = gx, gb = gx, gdb = gx;
  const int64_t planes = block.images * block.channels;
  Tensor shares = torch::stable::new_empty(x, std::array<int64_t, 2>{4, planes}, computed_type(x));
  for_element_type(x, "norm_relu_pool_tangent", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const Kept<A> kept{mutable_data<A>(statistics), kTangentStatistics};
    A* const sums = mutable_data<A>(shares);
    over_planes<A>(tangent_backward_kernel<T, A>, x, block, 2, 2, kSums, data<T>(gradient), data<T>(dgradient),
                   data<T>(x), data<T>(dx), data_or_null<A>(weight), data_or_null<A>(dweight), data_or_null<A>(bias),
                   mutable_data<T>(gx), mutable_data<T>(gdx), sums, kept, block);
    gw = summed<A>(x, block, weight, sums);
    gdw = summed<A>(x, block, dweight, sums + planes);
    gb = summed<A>(x, block, bias, sums + 2 * planes);
    gdb = summed<A>(x, block, dbias, sums + 3 * planes);
  });
  return {gx, gdx, gw, gdw, gb, gdb};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CUDA, m) {
  m.impl("norm_relu_pool", TORCH_BOX(&norm_relu_pool));
  m.impl("norm_relu_pool_backward", TORCH_BOX(&norm_relu_pool_backward));
  m.impl("norm_relu_pool_tangent", TORCH_BOX(&norm_relu_pool_tangent));
  m.impl("norm_relu_pool_tangent_backward", TORCH_BOX(&norm_relu_pool_tangent_backward));
}

}  // namespace ddlnl
