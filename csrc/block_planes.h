// The block tail on the CPU with the pixels of a plane next to each other. Formulas: block.h.
#pragma once

#include <algorithm>
#include <cmath>

#include "block_channels.h"

namespace ddlnl::planes {

// out = the mean of each 2x2 cell of z; Width 0 means any.
template <int64_t Width, typename T, typename A>
FORCE_INLINE void pool_rows(const A* z, T* out, const Block& block) {
  const int64_t width = Width ? Width : block.width, half = width / 2;
  for (int64_t i = 0; i < block.pooled_height(); ++i) {
    const A *top = z + 2 * i * width, *bottom = top + width;
#pragma omp simd
    for (int64_t j = 0; j < half; ++j) {
      out[i * half + j] = rounded<T>(A(0.25) * ((top[2 * j] + top[2 * j + 1]) + (bottom[2 * j] + bottom[2 * j + 1])));
    }
  }
}

// wide = a quarter of the cell's g at each pixel, 0 where an odd side leaves pixels over: the adjoint of pool_rows.
template <int64_t Width, typename T, typename A>
FORCE_INLINE void unpool_rows(const T* g, A* wide, const Block& block) {
  const int64_t width = Width ? Width : block.width, half = width / 2;
  for (int64_t i = 0; i < block.pooled_height(); ++i) {
    A *top = wide + 2 * i * width, *bottom = top + width;
#pragma omp simd
    for (int64_t j = 0; j < half; ++j) {
      const A value = A(0.25) * number(g[i * half + j]);
      top[2 * j] = top[2 * j + 1] = bottom[2 * j] = bottom[2 * j + 1] = value;
    }
    if (width % 2) top[width - 1] = bottom[width - 1] = 0;
  }
  if (block.height % 2) std::fill_n(wide + (block.height - 1) * width, width, A(0));
}

// A compile-time width lets the compiler unroll the short rows of the usual image sizes.
template <typename T, typename A>
FORCE_INLINE void pool(const A* z, T* out, const Block& block) {
  switch (block.width) {
    case 8: return pool_rows<8>(z, out, block);
    case 16: return pool_rows<16>(z, out, block);
    case 32: return pool_rows<32>(z, out, block);
    default: return pool_rows<0>(z, out, block);
  }
}

template <typename T, typename A>
FORCE_INLINE void unpool(const T* g, A* wide, const Block& block) {
  switch (block.width) {
    case 8: return unpool_rows<8>(g, wide, block);
    case 16: return unpool_rows<16>(g, wide, block);
    case 32: return unpool_rows<32>(g, wide, block);
    default: return unpool_rows<0>(g, wide, block);
  }
}

// Asks for the plane after this one. A plane of 32 x 32 numbers fills a page of memory, and what a processor fetches ahead by
// itself ends with the page.
template <typename T>
FORCE_INLINE void expect_next(const T* plane, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t p = n; p < 2 * n; p += kLine) __builtin_prefetch(plane + p, 0, 3);
}

// Mean and 1 / sqrt(var + eps) of a plane; the two passes keep the variance exact for planes far from 0.
template <typename T, typename A>
FORCE_INLINE void value_statistics(const T* plane, const Block& block, A eps, A* mean, A* r) {
  *mean = 0, *r = 1;
  if (!block.norm) return;
  const int64_t n = block.plane();
  A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t p = 0; p < n; ++p) sum += number(plane[p]);
  const A centre = sum / A(n);
#pragma omp simd reduction(+ : squares)
  for (int64_t p = 0; p < n; ++p) squares += (number(plane[p]) - centre) * (number(plane[p]) - centre);
  *mean = centre;
  *r = A(1) / std::sqrt(squares / A(n) + eps);
}

// mean(dx) and s = mean(dx xh) of a plane.
template <typename T, typename A>
FORCE_INLINE void tangent_statistics(const T* plane, const T* dplane, const Block& block, A m, A k, A* dmean, A* s) {
  *dmean = 0, *s = 0;
  if (!block.norm) return;
  const int64_t n = block.plane();
  A sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
  for (int64_t p = 0; p < n; ++p) {
    sum += number(dplane[p]);
    product += number(dplane[p]) * ((number(plane[p]) - m) * k);
  }
  *dmean = sum / A(n);
  *s = product / A(n);
}

// Value and statistics of one image.
template <typename T, typename A>
FORCE_INLINE void value_image(const T* x, T* out, const Block& block, A eps, Channels<A>& of, A* plane_scratch) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane();
  A *mean = of[K::kMean], *r = of[K::kR];
  const A *w = of[K::kW], *b = of[K::kB];
  for (int64_t c = 0; c < channels; ++c) {
    const T* plane = x + c * n;
    expect_next(plane, n);
    value_statistics(plane, block, eps, mean + c, r + c);
    const A m = mean[c], k = w[c] * r[c], shift = b[c];
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      const A y = (number(plane[p]) - m) * k + shift;
      plane_scratch[p] = y <= 0 ? A(0) : y;
    }
    pool(plane_scratch, out + c * block.pooled(), block);
  }
}

// dx of one image; the image's shares of the weight and bias gradients go to dw and db (C). Without the norm its terms are
// left out, here and below, not multiplied by 0: that would make NaN of an infinity.
template <bool Norm, typename T, typename A>
FORCE_INLINE void backward_image(const T* g, const T* x, T* dx, A* dw, A* db, const Block& block, Channels<A>& of,
                                 A* wide) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane();
  const A *mean = of[K::kMean], *r = of[K::kR], *w = of[K::kW], *b = of[K::kB];
  const A share = A(1) / A(n);
  for (int64_t c = 0; c < channels; ++c) {
    const T* plane = x + c * n;
    T* gradient = dx + c * n;
    expect_next(plane, n);
    unpool(g + c * block.pooled(), wide, block);
    const A m = mean[c], k = r[c], scale = w[c], shift = b[c];
    A sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
    for (int64_t p = 0; p < n; ++p) {
      const A xh = (number(plane[p]) - m) * k;
      const A d = scale * xh + shift <= 0 ? A(0) : wide[p];
      wide[p] = d;
      sum += d;
      product += d * xh;
    }
    const A mean_d = sum * share, mean_product = product * share, factor = scale * k;
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      gradient[p] = rounded<T>(
          Norm ? factor * (wide[p] - mean_d - (number(plane[p]) - m) * k * mean_product) : factor * wide[p]);
    }
    dw[c] = product;
    db[c] = sum;
  }
}

// Value, tangent and statistics; has_dw: a direction of the weights is given.
template <bool Norm, typename T, typename A>
FORCE_INLINE void tangent_image(const T* x, const T* dx, T* out, T* dout, const Block& block, A eps, Channels<A>& of,
                                bool has_dw, A* scratch) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane();
  A *mean = of[K::kMean], *r = of[K::kR], *dmean = of[K::kDmean], *s = of[K::kS];
  const A *w = of[K::kW], *b = of[K::kB], *dw = of[K::kDw], *db = of[K::kDb];
  A* dscratch = scratch + n;
  for (int64_t c = 0; c < channels; ++c) {
    const T *plane = x + c * n, *dplane = dx + c * n;
    expect_next(plane, n);
    expect_next(dplane, n);
    value_statistics(plane, block, eps, mean + c, r + c);
    tangent_statistics(plane, dplane, block, mean[c], r[c], dmean + c, s + c);
    const A m = mean[c], k = r[c], dm = dmean[c], projection = s[c];
    const A scale = w[c], shift = b[c], dscale = dw[c], dshift = db[c];
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      const A xh = (number(plane[p]) - m) * k;
      const A dxh = Norm ? k * (number(dplane[p]) - dm - xh * projection) : number(dplane[p]);
      const A y = scale * xh + shift, dy = scale * dxh + (has_dw ? dscale * xh : A(0)) + dshift;
      scratch[p] = y <= 0 ? A(0) : y;
      dscratch[p] = y <= 0 ? A(0) : dy;
    }
    pool(scratch, out + c * block.pooled(), block);
    pool(dscratch, dout + c * block.pooled(), block);
  }
}

// gx and gdx of one image; its shares of the sums go to `sums`, a row (C) for each `Sum`.
template <bool Norm, typename T, typename A>
FORCE_INLINE void tangent_backward_image(const T* g, const T* dg, const T* x, const T* dx, T* gx, T* gdx, A* const* sums,
                                         const Block& block, Channels<A>& of, A* wide) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane();
  const A *mean = of[K::kMean], *r = of[K::kR], *w = of[K::kW], *b = of[K::kB];
  const A *dmean = of[K::kDmean], *s = of[K::kS], *dw = of[K::kDw];
  const A share = A(1) / A(n);
  A* dwide = wide + n;
  for (int64_t c = 0; c < channels; ++c) {
    const T *plane = x + c * n, *dplane = dx + c * n;
    T *gplane = gx + c * n, *gdplane = gdx + c * n;
    expect_next(plane, n);
    expect_next(dplane, n);
    unpool(g + c * block.pooled(), wide, block);
    unpool(dg + c * block.pooled(), dwide, block);
    const A m = mean[c], k = r[c], dm = dmean[c], projection = s[c], scale = w[c], shift = b[c], dscale = dw[c];
    A sum_a = 0, sum_e = 0, sum_ax = 0, sum_ex = 0, sum_ed = 0;
#pragma omp simd reduction(+ : sum_a, sum_e, sum_ax, sum_ex, sum_ed)
    for (int64_t p = 0; p < n; ++p) {
      const A xh = (number(plane[p]) - m) * k;
      const A dxh = Norm ? k * (number(dplane[p]) - dm - xh * projection) : number(dplane[p]);
      const bool off = scale * xh + shift <= 0;
      const A a = off ? A(0) : wide[p], e = off ? A(0) : dwide[p];
      wide[p] = a;
      dwide[p] = e;
      sum_a += a;
      sum_e += e;
      sum_ax += a * xh;
      sum_ex += e * xh;
      sum_ed += e * dxh;
    }
    const Projections<A> t = projections(share, k, scale, dscale, dm, projection, sum_a, sum_e, sum_ax, sum_ex, sum_ed);
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      const A xh = (number(plane[p]) - m) * k;
      const A q = scale * dwide[p];
      const A through = Norm ? k * (q * projection + number(dplane[p]) * t.q1) : A(0);
      const A gxh = scale * wide[p] + dscale * dwide[p] - through;
      gdplane[p] = rounded<T>(Norm ? k * (q - t.q0 - xh * t.q1) : q);
      gplane[p] = rounded<T>(Norm ? k * (gxh - t.p0 - xh * t.p1) : gxh);
    }
    sums[kA][c] = sum_a, sums[kE][c] = sum_e, sums[kAx][c] = sum_ax, sums[kEx][c] = sum_ex, sums[kEd][c] = sum_ed;
  }
}

}  // namespace ddlnl::planes
