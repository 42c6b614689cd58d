// The block tail on the CPU with the channels of a pixel next to each other. Formulas: block.h.
//
// Every pass goes through the image in the order of memory, channels innermost; what belongs to a channel stays in the first
// cache. The last pass over an image asks for the next one, which is then in the second cache when its turn comes.
// With z = x - mean the per-channel factors are collected beforehand, so that a pixel costs few operations.
#pragma once

#include <algorithm>
#include <cmath>

#include "block_channels.h"

namespace ddlnl::last {

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
FORCE_INLINE void each_pixel(int64_t first, const Block& block, const Body& body) {
  body(first);
  body(first + block.channels);
  body(first + block.width * block.channels);
  body(first + (block.width + 1) * block.channels);
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

// Calls body(first pixel, how many) for every run of at most four pixels: a sum is then in a register for four.
template <typename Body>
FORCE_INLINE void over_pixels(const Block& block, const Body& body) {
  constexpr int64_t kRun = 4;
  int64_t p = 0;
  for (; p + kRun <= block.plane(); p += kRun) body(p, std::integral_constant<int64_t, kRun>{});
  for (; p < block.plane(); ++p) body(p, std::integral_constant<int64_t, 1>{});
}

// Asks for the elements of the next image that lie where this one's cell does.
template <typename T>
FORCE_INLINE void expect_next(const T* x, int64_t first, const Block& block) {
  each_pixel(first, block, [&](int64_t pixel) DDLNL_INLINE {
    __builtin_prefetch(x + block.channels * block.plane() + pixel, 0, 2);
  });
}

// Mean and 1 / sqrt(var + eps) of every channel; the two passes keep the variance exact for planes far from 0.
template <typename V, typename T, typename A = typename V::Number>
FORCE_INLINE void value_statistics(const T* x, const Block& block, A eps, Channels<A>& of) {
  using K = Channels<A>;
  using Vector = typename V::Vector;
  const int64_t channels = block.channels, n = block.plane();
  A *mean = of[K::kMean], *r = of[K::kR];
  std::fill_n(mean, channels, A(0));
  std::fill_n(r, channels, block.norm ? A(0) : A(1));
  if (!block.norm) return;
  over_pixels(block, [&](int64_t first, auto pixels) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      Vector sum{};
      for (int64_t p = first; p < first + pixels; ++p) sum += V::load(x + p * channels + c, count);
      V::store(mean + c, V::load(mean + c) + sum);
    });
  });
  for (int64_t c = 0; c < channels; ++c) mean[c] /= A(n);
  over_pixels(block, [&](int64_t first, auto pixels) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      const Vector centre = V::load(mean + c);
      Vector squares{};
      for (int64_t p = first; p < first + pixels; ++p) {
        const Vector z = V::load(x + p * channels + c, count) - centre;
        squares += z * z;
      }
      V::store(r + c, V::load(r + c) + squares);
    });
  });
  for (int64_t c = 0; c < channels; ++c) r[c] = A(1) / std::sqrt(r[c] / A(n) + eps);
}

// mean(dx) and s = mean(dx xh) of every channel.
template <typename V, typename T, typename A = typename V::Number>
FORCE_INLINE void tangent_statistics(const T* x, const T* dx, const Block& block, Channels<A>& of) {
  using K = Channels<A>;
  using Vector = typename V::Vector;
  const int64_t channels = block.channels, n = block.plane();
  A *dmean = of[K::kDmean], *s = of[K::kS];
  const A *mean = of[K::kMean], *r = of[K::kR];
  std::fill_n(dmean, channels, A(0));
  std::fill_n(s, channels, A(0));
  if (!block.norm) return;
  over_pixels(block, [&](int64_t first, auto pixels) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      const Vector centre = V::load(mean + c);
      Vector sum{}, product{};
      for (int64_t p = first; p < first + pixels; ++p) {
        const Vector d = V::load(dx + p * channels + c, count);
        sum += d;
        product += d * (V::load(x + p * channels + c, count) - centre);
      }
      V::store(dmean + c, V::load(dmean + c) + sum);
      V::store(s + c, V::load(s + c) + product);
    });
  });
  for (int64_t c = 0; c < channels; ++c) {
    dmean[c] /= A(n);
    s[c] *= r[c] / A(n);
  }
}

template <typename V, typename T, typename A = typename V::Number>
FORCE_INLINE void value_image(const T* x, T* out, const Block& block, Channels<A>& of) {
  using K = Channels<A>;
  using Vector = typename V::Vector;
  const A *mean = of[K::kMean], *slope = of[K::kSlope], *b = of[K::kB];
  for (int64_t c = 0; c < block.channels; ++c) of[K::kSlope][c] = of[K::kW][c] * of[K::kR][c];
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
    V::over(block.channels, [&](int64_t c, auto count) DDLNL_INLINE {
      expect_next(x + c, first, block);
      const Vector centre = V::load(mean + c), factor = V::load(slope + c), shift = V::load(b + c), zero{};
      Vector sum{};
      each_pixel(first, block, [&](int64_t pixel) DDLNL_INLINE {
        const Vector y = (V::load(x + pixel + c, count) - centre) * factor + shift;
        sum += y <= zero ? zero : y;
      });
      V::store(out + cell + c, A(0.25) * sum, count);
    });
  });
}

// dx of a pixel, slope d + offset + tilt z (without the norm slope d), from the gradient d of y.
template <typename V>
struct PixelGradient {
  using K = Channels<typename V::Number>;
  using Vector = typename V::Vector;
  FORCE_INLINE PixelGradient(K& of, int64_t c, bool norm)
      : norm(norm),
        mean(V::load(of[K::kMean] + c)),
        slope(V::load(of[K::kSlope] + c)),
        b(V::load(of[K::kB] + c)),
        offset(V::load(of[K::kThird] + c)),
        tilt(V::load(of[K::kFourth] + c)) {}

  // `on` is slope d + offset, where ReLU lets it pass.
  FORCE_INLINE Vector operator()(const Vector& x, const Vector& on) const {
    const Vector z = x - mean, d = z * slope + b <= Vector{} ? offset : on;
    return norm ? d + z * tilt : d;
  }

  bool norm;
  Vector mean, slope, b, offset, tilt;
};

// dx of one image; the image's shares of the weight and bias gradients go to dw and db (C). Without the norm its terms are
// left out, here and below, not multiplied by 0: that would make NaN of an infinity.
template <typename V, typename T, typename A = typename V::Number>
FORCE_INLINE void backward_image(const T* g, const T* x, T* dx, A* dw, A* db, const Block& block, Channels<A>& of) {
  using K = Channels<A>;
  using Vector = typename V::Vector;
  const int64_t channels = block.channels;
  const A *mean = of[K::kMean], *r = of[K::kR], *b = of[K::kB];
  A *slope = of[K::kSlope], *sums = of[K::kFirst], *products = of[K::kSecond];
  for (int64_t c = 0; c < channels; ++c) slope[c] = of[K::kW][c] * r[c];
  std::fill_n(sums, channels, A(0));
  std::fill_n(products, channels, A(0));
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      const Vector centre = V::load(mean + c), factor = V::load(slope + c), shift = V::load(b + c), zero{};
      const Vector quarter = A(0.25) * V::load(g + cell + c, count);
      Vector sum = V::load(sums + c), product = V::load(products + c);
      each_pixel(first, block, [&](int64_t pixel) DDLNL_INLINE {
        const Vector z = V::load(x + pixel + c, count) - centre;
        const Vector d = z * factor + shift <= zero ? zero : quarter;
        sum += d;
        product += d * z;
      });
      V::store(sums + c, sum);
      V::store(products + c, product);
    });
  });
  A *offset = of[K::kThird], *tilt = of[K::kFourth];
  for (int64_t c = 0; c < channels; ++c) {
    db[c] = sums[c];
    dw[c] = products[c] * r[c];
    offset[c] = block.norm ? -slope[c] * (db[c] / A(block.plane())) : A(0);
    tilt[c] = -slope[c] * r[c] * (dw[c] / A(block.plane()));
  }
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      expect_next(x + c, first, block);
      const PixelGradient<V> gradient(of, c, block.norm);
      const Vector on = A(0.25) * V::load(g + cell + c, count) * gradient.slope + gradient.offset;
      each_pixel(first, block, [&](int64_t pixel) DDLNL_INLINE {
        V::store(dx + pixel + c, gradient(V::load(x + pixel + c, count), on), count);
      });
    });
  });
  over_left_over(block, [&](int64_t pixel) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      const PixelGradient<V> gradient(of, c, block.norm);
      V::store(dx + pixel + c, gradient(V::load(x + pixel + c, count), gradient.offset), count);
    });
  });
}

// Value and tangent; has_dw: a direction of the weights is given.
template <typename V, typename T, typename A = typename V::Number>
FORCE_INLINE void tangent_image(const T* x, const T* dx, T* out, T* dout, const Block& block, Channels<A>& of,
                                bool has_dw) {
  using K = Channels<A>;
  using Vector = typename V::Vector;
  const int64_t channels = block.channels;
  const A *mean = of[K::kMean], *dmean = of[K::kDmean], *b = of[K::kB], *db = of[K::kDb];
  // dy = slope (dx - dmean) + tilt z + db
  A *slope = of[K::kSlope], *tilt = of[K::kFirst];
  for (int64_t c = 0; c < channels; ++c) {
    slope[c] = of[K::kW][c] * of[K::kR][c];
    tilt[c] = of[K::kR][c] * (of[K::kDw][c] - slope[c] * of[K::kS][c]);
  }
  const bool tilted = block.norm || has_dw;
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      expect_next(x + c, first, block);
      expect_next(dx + c, first, block);
      const Vector centre = V::load(mean + c), dcentre = V::load(dmean + c), factor = V::load(slope + c);
      const Vector shift = V::load(b + c), dshift = V::load(db + c), turn = V::load(tilt + c), zero{};
      Vector value{}, tangent{};
      each_pixel(first, block, [&](int64_t pixel) DDLNL_INLINE {
        const Vector z = V::load(x + pixel + c, count) - centre, y = z * factor + shift;
        Vector dy = (V::load(dx + pixel + c, count) - dcentre) * factor + dshift;
        if (tilted) dy += z * turn;
        value += y <= zero ? zero : y;
        tangent += y <= zero ? zero : dy;
      });
      V::store(out + cell + c, A(0.25) * value, count);
      V::store(dout + cell + c, A(0.25) * tangent, count);
    });
  });
}

// gx = slope a + on_e e + constant + on_v v + on_z z and gdx = slope e + dconstant + on_v z of a pixel, with v = dx - dmean,
// from the gradients a of y and e of dy.
template <typename V>
struct PixelGradients {
  using K = Channels<typename V::Number>;
  using Vector = typename V::Vector;
  FORCE_INLINE PixelGradients(K& of, int64_t c, bool norm)
      : norm(norm),
        mean(V::load(of[K::kMean] + c)),
        dmean(V::load(of[K::kDmean] + c)),
        slope(V::load(of[K::kSlope] + c)),
        b(V::load(of[K::kB] + c)),
        on_e(V::load(of[K::kFirst] + c)),
        constant(V::load(of[K::kSecond] + c)),
        on_v(V::load(of[K::kThird] + c)),
        on_z(V::load(of[K::kFourth] + c)),
        dconstant(V::load(of[K::kFifth] + c)) {}

  // `on` and `don` are the terms without z and v, where ReLU lets them pass.
  FORCE_INLINE void operator()(const Vector& x, const Vector& dx, const Vector& on, const Vector& don, Vector* gx,
                               Vector* gdx) const {
    const Vector z = x - mean, v = dx - dmean;
    const auto off = z * slope + b <= Vector{};
    *gx = off ? constant : on;
    *gdx = off ? dconstant : don;
    if (norm) *gx += v * on_v + z * on_z, *gdx += z * on_v;
  }

  bool norm;
  Vector mean, dmean, slope, b, on_e, constant, on_v, on_z, dconstant;
};

// gx and gdx of one image; its shares of the sums go to `sums`, a row (C) for each `Sum`.
template <typename V, typename T, typename A = typename V::Number>
FORCE_INLINE void tangent_backward_image(const T* g, const T* dg, const T* x, const T* dx, T* gx, T* gdx, A* const* sums,
                                         const Block& block, Channels<A>& of) {
  using K = Channels<A>;
  using Vector = typename V::Vector;
  const int64_t channels = block.channels;
  const A *mean = of[K::kMean], *dmean = of[K::kDmean], *r = of[K::kR], *w = of[K::kW], *b = of[K::kB];
  A* slope = of[K::kSlope];
  for (int64_t c = 0; c < channels; ++c) slope[c] = w[c] * r[c];
  A* const totals[kSums] = {of[K::kFirst], of[K::kSecond], of[K::kThird], of[K::kFourth], of[K::kFifth]};
  for (A* row : totals) std::fill_n(row, channels, A(0));
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      const Vector centre = V::load(mean + c), dcentre = V::load(dmean + c), factor = V::load(slope + c), zero{};
      const Vector shift = V::load(b + c);
      const Vector quarter = A(0.25) * V::load(g + cell + c, count);
      const Vector dquarter = A(0.25) * V::load(dg + cell + c, count);
      Vector sum[kSums];
      for (int64_t one = 0; one < kSums; ++one) sum[one] = V::load(totals[one] + c);
      each_pixel(first, block, [&](int64_t pixel) DDLNL_INLINE {
        const Vector z = V::load(x + pixel + c, count) - centre, v = V::load(dx + pixel + c, count) - dcentre;
        const auto off = z * factor + shift <= zero;
        const Vector a = off ? zero : quarter, e = off ? zero : dquarter;
        sum[kA] += a;
        sum[kE] += e;
        sum[kAx] += a * z;
        sum[kEx] += e * z;
        sum[kEd] += e * v;
      });
      for (int64_t one = 0; one < kSums; ++one) V::store(totals[one] + c, sum[one]);
    });
  });
  A *on_e = of[K::kFirst], *constant = of[K::kSecond], *on_v = of[K::kThird], *on_z = of[K::kFourth];
  A* dconstant = of[K::kFifth];
  for (int64_t c = 0; c < channels; ++c) {
    const A s = of[K::kS][c], dw = of[K::kDw][c], k = r[c];
    sums[kA][c] = totals[kA][c], sums[kE][c] = totals[kE][c];
    sums[kAx][c] = totals[kAx][c] * k, sums[kEx][c] = totals[kEx][c] * k;
    sums[kEd][c] = block.norm ? k * (totals[kEd][c] - s * sums[kEx][c]) : totals[kEd][c];
    const Projections<A> t = projections(A(1) / A(block.plane()), k, w[c], dw, A(0), s, sums[kA][c], sums[kE][c],
                                         sums[kAx][c], sums[kEx][c], sums[kEd][c]);
    on_e[c] = k * (dw - slope[c] * s);
    constant[c] = block.norm ? -k * t.p0 : A(0), dconstant[c] = block.norm ? -k * t.q0 : A(0);
    on_v[c] = -k * k * t.q1, on_z[c] = -k * k * t.p1;
  }
  const auto write = [&](const PixelGradients<V>& gradients, int64_t at, auto count, const Vector& on,
                         const Vector& don) DDLNL_INLINE {
    Vector here, dhere;
    gradients(V::load(x + at, count), V::load(dx + at, count), on, don, &here, &dhere);
    V::store(gx + at, here, count);
    V::store(gdx + at, dhere, count);
  };
  over_cells(block, [&](int64_t first, int64_t cell) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      expect_next(x + c, first, block);
      expect_next(dx + c, first, block);
      const PixelGradients<V> gradients(of, c, block.norm);
      const Vector a = A(0.25) * V::load(g + cell + c, count), e = A(0.25) * V::load(dg + cell + c, count);
      const Vector on = a * gradients.slope + e * gradients.on_e + gradients.constant;
      const Vector don = e * gradients.slope + gradients.dconstant;
      each_pixel(first, block, [&](int64_t pixel) DDLNL_INLINE { write(gradients, pixel + c, count, on, don); });
    });
  });
  over_left_over(block, [&](int64_t pixel) DDLNL_INLINE {
    V::over(channels, [&](int64_t c, auto count) DDLNL_INLINE {
      const PixelGradients<V> gradients(of, c, block.norm);
      write(gradients, pixel + c, count, gradients.constant, gradients.dconstant);
    });
  });
}

}  // namespace ddlnl::last
