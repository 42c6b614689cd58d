// Instance norm + ReLU + 2x2 average pool on the CPU: value, gradient, and value with tangent. Formulas: block.h.
//
// Images are independent, so threads share them. An image is read from memory once and then found in the cache. In both
// memory layouts the inner loops run over neighbouring elements: over the pixels of a plane, or over the channels of a pixel.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "block.h"
#include "cpu.h"

namespace ddlnl {
namespace {

#define FORCE_INLINE inline DDLNL_INLINE

// Per-channel numbers of one image, structure of arrays so that loops over channels vectorise.
template <typename A>
struct Channels {
  enum Row { kMean, kR, kDmean, kS, kW, kB, kDw, kDb, kRows };  // first what is kept, in the order of Statistic
  static_assert(kR == int(Statistic::kScale) && kDmean == int(kTangentMean) && kS == int(kProjection));
  explicit Channels(int64_t count) : count(count), numbers(kRows * count) {}

  A* operator[](Row row) { return numbers.data() + row * count; }

  // A row of weights, or the value that stands for their absence.
  template <typename T>
  void set(Row row, const T* weights, int64_t group, A absent) {
    for (int64_t c = 0; c < count; ++c) (*this)[row][c] = weights ? A(weights[group * count + c]) : absent;
  }

  int64_t count;
  std::vector<A> numbers;
};

// ---------------------------------------------------------------- pooling of one plane, pixels next to each other

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

// ---------------------------------------------------------------- cells of an image, channels next to each other

// Calls body(element of the cell's first pixel, element of the pooled pixel) for every pooled 2x2 cell.
template <typename Body>
FORCE_INLINE void over_cells(const Block& block, const Body& body) {
  for (int64_t i = 0; i < block.pooled_height(); ++i) {
    for (int64_t j = 0; j < block.pooled_width(); ++j) {
      body((2 * i * block.width + 2 * j) * block.channels, (i * block.pooled_width() + j) * block.channels);
    }
  }
}

// Calls body(element of the pixel) for the four pixels of the cell that begins at `first`.
template <typename Body>
FORCE_INLINE void each_pixel(int64_t first, int64_t width, int64_t channels, const Body& body) {
  body(first);
  body(first + channels);
  body(first + width * channels);
  body(first + (width + 1) * channels);
}

// Calls body(element of the pixel) for the last column and row of odd sides, which no cell has.
template <typename Body>
FORCE_INLINE void over_left_over(const Block& block, const Body& body) {
  for (int64_t i = 0; i < block.height; ++i) {
    const bool last_row = block.height % 2 && i == block.height - 1;
    const int64_t first = last_row ? 0 : 2 * block.pooled_width();
    for (int64_t j = first; j < block.width; ++j) body((i * block.width + j) * block.channels);
  }
}

// ---------------------------------------------------------------- statistics

// Mean and 1 / sqrt(var + eps) of every channel; the two passes keep the variance exact for planes far from 0.
template <typename T, typename A>
FORCE_INLINE void value_statistics(const T* x, const Block& block, A eps, A* mean, A* r) {
  const int64_t channels = block.channels, n = block.plane();
  if (!block.norm) {
    std::fill_n(mean, channels, A(0));
    std::fill_n(r, channels, A(1));
    return;
  }
  if (!block.last) {
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = x + c * n;
      A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t p = 0; p < n; ++p) sum += number(plane[p]);
      const A centre = sum / A(n);
#pragma omp simd reduction(+ : squares)
      for (int64_t p = 0; p < n; ++p) squares += (number(plane[p]) - centre) * (number(plane[p]) - centre);
      mean[c] = centre;
      r[c] = A(1) / std::sqrt(squares / A(n) + eps);
    }
    return;
  }
  std::fill_n(mean, channels, A(0));
  std::fill_n(r, channels, A(0));
  for (int64_t p = 0; p < n; ++p) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) mean[c] += number(x[p * channels + c]);
  }
  for (int64_t c = 0; c < channels; ++c) mean[c] /= A(n);
  for (int64_t p = 0; p < n; ++p) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A centred = number(x[p * channels + c]) - mean[c];
      r[c] += centred * centred;
    }
  }
  for (int64_t c = 0; c < channels; ++c) r[c] = A(1) / std::sqrt(r[c] / A(n) + eps);
}

// mean(dx) and s = mean(dx xh) of every channel.
template <typename T, typename A>
FORCE_INLINE void tangent_statistics(const T* x, const T* dx, const Block& block, const A* mean, const A* r, A* dmean,
                                     A* s) {
  const int64_t channels = block.channels, n = block.plane();
  std::fill_n(dmean, channels, A(0));
  std::fill_n(s, channels, A(0));
  if (!block.norm) return;
  if (!block.last) {
    for (int64_t c = 0; c < channels; ++c) {
      const T *plane = x + c * n, *dplane = dx + c * n;
      const A m = mean[c], k = r[c];
      A sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
      for (int64_t p = 0; p < n; ++p) {
        sum += number(dplane[p]);
        product += number(dplane[p]) * ((number(plane[p]) - m) * k);
      }
      dmean[c] = sum / A(n);
      s[c] = product / A(n);
    }
    return;
  }
  for (int64_t p = 0; p < n; ++p) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A d = number(dx[p * channels + c]);
      dmean[c] += d;
      s[c] += d * ((number(x[p * channels + c]) - mean[c]) * r[c]);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    dmean[c] /= A(n);
    s[c] /= A(n);
  }
}

// ---------------------------------------------------------------- value

template <typename T, typename A>
FORCE_INLINE void value_image(const T* x, T* out, const Block& block, Channels<A>& of, A* plane_scratch) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane(), width = block.width;
  const A *mean = of[K::kMean], *r = of[K::kR], *w = of[K::kW], *b = of[K::kB];
  if (!block.last) {
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = x + c * n;
      const A m = mean[c], k = w[c] * r[c], shift = b[c];
#pragma omp simd
      for (int64_t p = 0; p < n; ++p) {
        const A y = (number(plane[p]) - m) * k + shift;
        plane_scratch[p] = y <= 0 ? A(0) : y;
      }
      pool(plane_scratch, out + c * block.pooled(), block);
    }
    return;
  }
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A k = w[c] * r[c];
      const auto relu = [&](int64_t pixel) DDLNL_INLINE {
        const A y = (number(x[pixel + c]) - mean[c]) * k + b[c];
        return y <= 0 ? A(0) : y;
      };
      const A top = relu(first) + relu(first + channels);
      const A bottom = relu(first + width * channels) + relu(first + (width + 1) * channels);
      out[cell + c] = rounded<T>(A(0.25) * (top + bottom));
    }
  });
}

// ---------------------------------------------------------------- gradient of the value
//
// Without the norm its terms are left out, not multiplied by 0: that would make NaN of an infinity.

// dx of one image; the image's shares of the weight and bias gradients go to dw and db (C).
template <bool Norm, typename T, typename A>
FORCE_INLINE void backward_image(const T* g, const T* x, T* dx, A* dw, A* db, const Block& block, Channels<A>& of,
                                 A* wide) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane(), width = block.width;
  const A *mean = of[K::kMean], *r = of[K::kR], *w = of[K::kW], *b = of[K::kB];
  const A share = A(1) / A(n);
  if (!block.last) {
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = x + c * n;
      T* gradient = dx + c * n;
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
    return;
  }
  std::fill_n(dw, channels, A(0));
  std::fill_n(db, channels, A(0));
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A quarter = A(0.25) * number(g[cell + c]);
      A sum = 0, product = 0;
      const auto add = [&](int64_t pixel) DDLNL_INLINE {
        const A xh = (number(x[pixel + c]) - mean[c]) * r[c];
        const A d = w[c] * xh + b[c] <= 0 ? A(0) : quarter;
        sum += d;
        product += d * xh;
      };
      each_pixel(first, width, channels, add);
      db[c] += sum;
      dw[c] += product;
    }
  });
  const auto write = [&](int64_t pixel, int64_t c, A quarter) DDLNL_INLINE {
    const A xh = (number(x[pixel + c]) - mean[c]) * r[c];
    const A d = w[c] * xh + b[c] <= 0 ? A(0) : quarter;
    dx[pixel + c] = rounded<T>(Norm ? w[c] * r[c] * (d - share * db[c] - xh * (share * dw[c])) : w[c] * d);
  };
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A quarter = A(0.25) * number(g[cell + c]);
      each_pixel(first, width, channels, [&](int64_t pixel) DDLNL_INLINE { write(pixel, c, quarter); });
    }
  });
  over_left_over(block, [&](int64_t pixel) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) write(pixel, c, A(0));
  });
}

// ---------------------------------------------------------------- value and tangent

template <bool Norm, typename T, typename A>
FORCE_INLINE void tangent_image(const T* x, const T* dx, T* out, T* dout, const Block& block, Channels<A>& of,
                                bool has_dw, A* scratch) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane(), width = block.width;
  const A *mean = of[K::kMean], *r = of[K::kR], *w = of[K::kW], *b = of[K::kB];
  const A *dmean = of[K::kDmean], *s = of[K::kS], *dw = of[K::kDw], *db = of[K::kDb];
  if (!block.last) {
    A* dscratch = scratch + n;
    for (int64_t c = 0; c < channels; ++c) {
      const T *plane = x + c * n, *dplane = dx + c * n;
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
    return;
  }
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      A value = 0, tangent = 0;
      const auto add = [&](int64_t pixel) DDLNL_INLINE {
        const A xh = (number(x[pixel + c]) - mean[c]) * r[c];
        const A dxh = Norm ? r[c] * (number(dx[pixel + c]) - dmean[c] - xh * s[c]) : number(dx[pixel + c]);
        const A y = w[c] * xh + b[c], dy = w[c] * dxh + (has_dw ? dw[c] * xh : A(0)) + db[c];
        value += y <= 0 ? A(0) : y;
        tangent += y <= 0 ? A(0) : dy;
      };
      each_pixel(first, width, channels, add);
      out[cell + c] = rounded<T>(A(0.25) * value);
      dout[cell + c] = rounded<T>(A(0.25) * tangent);
    }
  });
}

// ---------------------------------------------------------------- gradient of value and tangent

template <bool Norm, typename T, typename A>
FORCE_INLINE void tangent_backward_image(const T* g, const T* dg, const T* x, const T* dx, T* gx, T* gdx, A* const* sums,
                                         const Block& block, Channels<A>& of, A* wide) {
  using K = Channels<A>;
  const int64_t channels = block.channels, n = block.plane(), width = block.width;
  const A *mean = of[K::kMean], *r = of[K::kR], *w = of[K::kW], *b = of[K::kB];
  const A *dmean = of[K::kDmean], *s = of[K::kS], *dw = of[K::kDw];
  const A share = A(1) / A(n);
  if (!block.last) {
    A* dwide = wide + n;
    for (int64_t c = 0; c < channels; ++c) {
      const T *plane = x + c * n, *dplane = dx + c * n;
      T *gplane = gx + c * n, *gdplane = gdx + c * n;
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
    return;
  }
  A *sa = sums[kA], *se = sums[kE], *sax = sums[kAx], *sex = sums[kEx], *sed = sums[kEd];
  for (int64_t one = 0; one < kSums; ++one) std::fill_n(sums[one], channels, A(0));
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A quarter = A(0.25) * number(g[cell + c]), dquarter = A(0.25) * number(dg[cell + c]);
      A sum_a = 0, sum_e = 0, sum_ax = 0, sum_ex = 0, sum_ed = 0;
      const auto add = [&](int64_t pixel) DDLNL_INLINE {
        const A xh = (number(x[pixel + c]) - mean[c]) * r[c];
        const A dxh = Norm ? r[c] * (number(dx[pixel + c]) - dmean[c] - xh * s[c]) : number(dx[pixel + c]);
        const bool off = w[c] * xh + b[c] <= 0;
        const A a = off ? A(0) : quarter, e = off ? A(0) : dquarter;
        sum_a += a;
        sum_e += e;
        sum_ax += a * xh;
        sum_ex += e * xh;
        sum_ed += e * dxh;
      };
      each_pixel(first, width, channels, add);
      sa[c] += sum_a;
      se[c] += sum_e;
      sax[c] += sum_ax;
      sex[c] += sum_ex;
      sed[c] += sum_ed;
    }
  });
  A *q0 = wide, *q1 = q0 + channels, *p0 = q1 + channels, *p1 = p0 + channels;
  for (int64_t c = 0; c < channels; ++c) {
    const Projections<A> t =
        projections(share, r[c], w[c], dw[c], dmean[c], s[c], sa[c], se[c], sax[c], sex[c], sed[c]);
    q0[c] = t.q0, q1[c] = t.q1, p0[c] = t.p0, p1[c] = t.p1;
  }
  const auto write = [&](int64_t pixel, int64_t c, A quarter, A dquarter) DDLNL_INLINE {
    const A xh = (number(x[pixel + c]) - mean[c]) * r[c];
    const bool off = w[c] * xh + b[c] <= 0;
    const A a = off ? A(0) : quarter, e = off ? A(0) : dquarter;
    const A q = w[c] * e;
    const A through = Norm ? r[c] * (q * s[c] + number(dx[pixel + c]) * q1[c]) : A(0);
    const A gxh = w[c] * a + dw[c] * e - through;
    gdx[pixel + c] = rounded<T>(Norm ? r[c] * (q - q0[c] - xh * q1[c]) : q);
    gx[pixel + c] = rounded<T>(Norm ? r[c] * (gxh - p0[c] - xh * p1[c]) : gxh);
  };
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const A quarter = A(0.25) * number(g[cell + c]), dquarter = A(0.25) * number(dg[cell + c]);
      each_pixel(first, width, channels, [&](int64_t pixel) DDLNL_INLINE { write(pixel, c, quarter, dquarter); });
    }
  });
  over_left_over(block, [&](int64_t pixel) DDLNL_INLINE {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) write(pixel, c, A(0), A(0));
  });
}

// ---------------------------------------------------------------- operators

// Calls work(first, last) on runs of images, compiled for the widest vectors.
template <typename Work>
void over_images(const Block& block, const Work& work) {
  if (block.images * block.channels == 0) return;
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, block.channels * block.plane()));
  torch::stable::parallel_for(0, block.images, grain, [&](int64_t first, int64_t last) {
    with_widest_vectors([&]() DDLNL_INLINE { work(first, last); });
  });
}

// Calls body(std::true_type) for a block with the norm, body(std::false_type) for one without.
template <typename Body>
FORCE_INLINE void with_norm(const Block& block, const Body& body) {
  block.norm ? body(std::true_type{}) : body(std::false_type{});
}

// (G, C) of the weights' dtype from per-image shares (N, C), added in the order of the images whatever the threads do.
template <typename T, typename A>
Tensor summed(const Tensor& x, const Block& block, const OptionalTensor& rows, const std::vector<A>& shares) {
  if (!rows) return torch::stable::new_empty(x, std::array<int64_t, 1>{0});
  Tensor result = torch::stable::new_empty(x, std::array<int64_t, 2>{block.groups, block.channels});
  T* out = mutable_data<T>(result);
  std::vector<A> total(block.channels);
  const int64_t run = block.images / block.groups;
  for (int64_t group = 0; group < block.groups; ++group) {
    std::fill(total.begin(), total.end(), A(0));
    for (int64_t image = group * run; image < (group + 1) * run; ++image) {
      for (int64_t c = 0; c < block.channels; ++c) total[c] += shares[image * block.channels + c];
    }
    for (int64_t c = 0; c < block.channels; ++c) out[group * block.channels + c] = T(total[c]);
  }
  return result;
}

std::tuple<Tensor, Tensor> norm_relu_pool(Tensor x, OptionalTensor weight, OptionalTensor bias, double eps, bool norm) {
  const Block block = checked_block(x, norm, {&weight, &bias}, {}, {});
  Tensor out = empty_like_block(x, block, block.pooled_height(), block.pooled_width());
  Tensor statistics = empty_statistics(x, kValueStatistics);
  for_element_type(x, "norm_relu_pool", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T *from = data<T>(x), *w = data_or_null<T>(weight), *b = data_or_null<T>(bias);
    T* to = mutable_data<T>(out);
    A* kept = mutable_data<A>(statistics);
    over_images(block, [&](int64_t first, int64_t last) DDLNL_INLINE {
      using K = Channels<A>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 0 : block.plane());
      for (int64_t image = first; image < last; ++image) {
        of.set(K::kW, w, block.group_of(image), A(1));
        of.set(K::kB, b, block.group_of(image), A(0));
        value_statistics(from + image * size, block, A(eps), of[K::kMean], of[K::kR]);
        std::copy_n(of[K::kMean], kValueStatistics * block.channels, kept + image * kValueStatistics * block.channels);
        value_image(from + image * size, to + image * pooled, block, of, scratch.data());
      }
    });
  });
  return {out, statistics};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_backward(Tensor gradient, Tensor x, OptionalTensor weight,
                                                           OptionalTensor bias, Tensor statistics, bool norm) {
  const Block block = checked_block(x, norm, {&weight, &bias}, {}, {&gradient});
  check_statistics(statistics, x, kValueStatistics);
  Tensor dx = empty_like_block(x, block, block.height, block.width), dweight = dx, dbias = dx;
  for_element_type(x, "norm_relu_pool", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T *from = data<T>(x), *above = data<T>(gradient), *w = data_or_null<T>(weight), *b = data_or_null<T>(bias);
    const A* kept = data<A>(statistics);
    T* to = mutable_data<T>(dx);
    std::vector<A> dw(block.images * block.channels), db(block.images * block.channels);
    over_images(block, [&](int64_t first, int64_t last) DDLNL_INLINE {
      using K = Channels<A>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 0 : block.plane());
      for (int64_t image = first; image < last; ++image) {
        of.set(K::kW, w, block.group_of(image), A(1));
        of.set(K::kB, b, block.group_of(image), A(0));
        std::copy_n(kept + image * kValueStatistics * block.channels, kValueStatistics * block.channels, of[K::kMean]);
        with_norm(block, [&](auto norm) DDLNL_INLINE {
          backward_image<decltype(norm)::value>(above + image * pooled, from + image * size, to + image * size,
                                                dw.data() + image * block.channels, db.data() + image * block.channels,
                                                block, of, scratch.data());
        });
      }
    });
    dweight = summed<T, A>(x, block, weight, dw);
    dbias = summed<T, A>(x, block, bias, db);
  });
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_tangent(Tensor x, Tensor dx, OptionalTensor weight,
                                                          OptionalTensor dweight, OptionalTensor bias,
                                                          OptionalTensor dbias, double eps, bool norm) {
  const Block block = checked_block(x, norm, {&weight, &dweight, &bias, &dbias}, {&dx}, {});
  Tensor out = empty_like_block(x, block, block.pooled_height(), block.pooled_width());
  Tensor dout = empty_like_block(x, block, block.pooled_height(), block.pooled_width());
  Tensor statistics = empty_statistics(x, kTangentStatistics);
  for_element_type(x, "norm_relu_pool_tangent", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T *from = data<T>(x), *dfrom = data<T>(dx), *w = data_or_null<T>(weight), *b = data_or_null<T>(bias);
    const T *dw = data_or_null<T>(dweight), *db = data_or_null<T>(dbias);
    T *to = mutable_data<T>(out), *dto = mutable_data<T>(dout);
    A* kept = mutable_data<A>(statistics);
    over_images(block, [&](int64_t first, int64_t last) DDLNL_INLINE {
      using K = Channels<A>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 0 : 2 * block.plane());
      for (int64_t image = first; image < last; ++image) {
        const int64_t group = block.group_of(image);
        of.set(K::kW, w, group, A(1));
        of.set(K::kB, b, group, A(0));
        of.set(K::kDw, dw, group, A(0));
        of.set(K::kDb, db, group, A(0));
        const T *here = from + image * size, *dhere = dfrom + image * size;
        value_statistics(here, block, A(eps), of[K::kMean], of[K::kR]);
        tangent_statistics(here, dhere, block, of[K::kMean], of[K::kR], of[K::kDmean], of[K::kS]);
        std::copy_n(of[K::kMean], kTangentStatistics * block.channels,
                    kept + image * kTangentStatistics * block.channels);
        with_norm(block, [&](auto norm) DDLNL_INLINE {
          tangent_image<decltype(norm)::value>(here, dhere, to + image * pooled, dto + image * pooled, block, of,
                                               dw != nullptr, scratch.data());
        });
      }
    });
  });
  return {out, dout, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_relu_pool_tangent_backward(
    Tensor gradient, Tensor dgradient, Tensor x, Tensor dx, OptionalTensor weight, OptionalTensor dweight,
    OptionalTensor bias, OptionalTensor dbias, Tensor statistics, bool norm) {
  const Block block = checked_block(x, norm, {&weight, &dweight, &bias, &dbias}, {&dx}, {&gradient, &dgradient});
  check_statistics(statistics, x, kTangentStatistics);
  Tensor gx = empty_like_block(x, block, block.height, block.width);
  Tensor gdx = empty_like_block(x, block, block.height, block.width), gw = gx, gdw = gx, gb = gx, gdb = gx;
  for_element_type(x, "norm_relu_pool_tangent", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T *above = data<T>(gradient), *dabove = data<T>(dgradient), *from = data<T>(x), *dfrom = data<T>(dx);
    const T *w = data_or_null<T>(weight), *b = data_or_null<T>(bias), *dw = data_or_null<T>(dweight);
    const A* kept = data<A>(statistics);
    T *to = mutable_data<T>(gx), *dto = mutable_data<T>(gdx);
    std::array<std::vector<A>, kSums> sums;
    for (auto& one : sums) one.resize(block.images * block.channels);
    over_images(block, [&](int64_t first, int64_t last) DDLNL_INLINE {
      using K = Channels<A>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 4 * block.channels : 2 * block.plane());
      for (int64_t image = first; image < last; ++image) {
        const int64_t group = block.group_of(image);
        of.set(K::kW, w, group, A(1));
        of.set(K::kB, b, group, A(0));
        of.set(K::kDw, dw, group, A(0));
        std::copy_n(kept + image * kTangentStatistics * block.channels, kTangentStatistics * block.channels,
                    of[K::kMean]);
        A* here[kSums];
        for (int64_t one = 0; one < kSums; ++one) here[one] = sums[one].data() + image * block.channels;
        with_norm(block, [&](auto norm) DDLNL_INLINE {
          tangent_backward_image<decltype(norm)::value>(above + image * pooled, dabove + image * pooled,
                                                        from + image * size, dfrom + image * size, to + image * size,
                                                        dto + image * size, here, block, of, scratch.data());
        });
      }
    });
    for (size_t at = 0; at < sums[kAx].size(); ++at) sums[kAx][at] += sums[kEd][at];
    gw = summed<T, A>(x, block, weight, sums[kAx]);
    gdw = summed<T, A>(x, block, dweight, sums[kEx]);
    gb = summed<T, A>(x, block, bias, sums[kA]);
    gdb = summed<T, A>(x, block, dbias, sums[kE]);
  });
  return {gx, gdx, gw, gdw, gb, gdb};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CPU, m) {
  m.impl("norm_relu_pool", TORCH_BOX(&norm_relu_pool));
  m.impl("norm_relu_pool_backward", TORCH_BOX(&norm_relu_pool_backward));
  m.impl("norm_relu_pool_tangent", TORCH_BOX(&norm_relu_pool_tangent));
  m.impl("norm_relu_pool_tangent_backward", TORCH_BOX(&norm_relu_pool_tangent_backward));
}

}  // namespace ddlnl
