// Softplus + 2x2 average pool on the CPU, channels-last: value, tangent and the transpose of the tangent. Formulas: smooth.h.
//
// Threads share the rows of cells of all images. A cell is read once; its numbers stand in registers.

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "lanes.h"
#include "smooth.h"

#define FORCE_INLINE inline DDLNL_INLINE

namespace ddlnl {
namespace {

// exp(-t) for 0 <= t, and log(1 + e) for 0 <= e <= 1, to the last digit or two of a float; 0 where exp(-t) is below 1e-26.
// Numbers below the smallest normal one, which come up where a pre-activation is far below 0, would cost a hundred times the
// rest, so neither function makes any.
template <typename V>
FORCE_INLINE typename V::Vector exp_minus(const typename V::Vector& distance) {
  using Vector = typename V::Vector;
  Vector t = distance;
  if constexpr (sizeof(typename V::Number) == 8) {
    for (int64_t i = 0; i < V::kCount; ++i) t[i] = std::exp(-t[i]);
    return t;
  } else {
    const Vector most = Vector{} + 60.0f;
    const auto nothing = t > most;
    t = nothing ? most : t;
    constexpr float kRound = 12582912.0f;  // 1.5 2^23: what is added to it loses its fraction
    const Vector n = (t * -1.44269504f + kRound) - kRound;
    const Vector r = (-t - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    typedef int32_t Whole __attribute__((vector_size(V::kCount * sizeof(int32_t))));
    p *= same_bits<Vector>((__builtin_convertvector(n, Whole) + 127) << 23);
    return nothing ? Vector{} : p;
  }
}

template <typename V>
FORCE_INLINE typename V::Vector log_one_plus(const typename V::Vector& e) {
  using Vector = typename V::Vector;
  if constexpr (sizeof(typename V::Number) == 8) {
    Vector result = e;
    for (int64_t i = 0; i < V::kCount; ++i) result[i] = std::log1p(e[i]);
    return result;
  } else {
    const Vector s = e / (e + 2.0f), least = Vector{} + 1e-15f;  // 2 artanh(s), and s is at most a third
    const Vector q = (s > least ? s : least) * (s > least ? s : least);
    Vector p = q * (1.0f / 13) + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return 2.0f * s * p;
  }
}

template <typename V>
FORCE_INLINE typename V::Vector softplus(const typename V::Vector& z) {
  const typename V::Vector zero{};
  const auto negative = z < zero;
  return (negative ? zero : z) + log_one_plus<V>(exp_minus<V>(negative ? -z : z));
}

template <typename V>
FORCE_INLINE typename V::Vector sigmoid(const typename V::Vector& z) {
  using A = typename V::Number;
  const typename V::Vector zero{}, one = zero + A(1);
  const auto negative = z < zero;
  const typename V::Vector e = exp_minus<V>(negative ? -z : z);
  return (negative ? e : one) / (e + A(1));
}

// Calls body(V, element of a cell's first pixel, of its pooled pixel, how many) for runs of channels of every cell.
template <typename A, typename Body>
void over_cells(const Smooth& call, const Body& body) {
  if (call.cells() == 0) return;
  const int64_t rows = call.images * call.half_height(), line = call.width * call.channels;
  const int64_t grain = std::max<int64_t>(1, (1 << 13) / (call.half_width() * call.channels));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    with_widest_vectors([&](auto bytes) DDLNL_INLINE {
      using V = Lanes<A, decltype(bytes)::value>;
      for (int64_t row = first; row < last; ++row) {
        const int64_t image = row / call.half_height(), i = row % call.half_height();
        for (int64_t j = 0; j < call.half_width(); ++j) {
          const int64_t from = (image * call.height + 2 * i) * line + 2 * j * call.channels;
          const int64_t to = (row * call.half_width() + j) * call.channels;
          V::over(call.channels, [&](int64_t c, auto count) DDLNL_INLINE { body(V{}, from + c, to + c, count); });
        }
      }
    });
  });
}

// The sum of `at` over the four pixels of a cell.
template <typename V, typename At>
FORCE_INLINE typename V::Vector cell_sum(int64_t from, const Smooth& call, const At& at) {
  const int64_t line = call.width * call.channels;
  return (at(from) + at(from + call.channels)) + (at(from + line) + at(from + line + call.channels));
}

Tensor softplus_pool(Tensor x, double beta) {
  const Smooth call = checked_smooth(x, nullptr, nullptr, true);
  Tensor out = empty_smooth(x, true, 2);
  for_float_or_double(x, [&](auto element) {
    using A = decltype(element);
    const A *from = data<A>(x), b = A(beta), share = A(0.25 / beta);
    A* to = mutable_data<A>(out);
    over_cells<A>(call, [=, &call](auto v, int64_t first, int64_t cell, auto count) DDLNL_INLINE {
      using V = decltype(v);
      V::store(to + cell, share * cell_sum<V>(first, call, [&](int64_t at) DDLNL_INLINE {
                 return softplus<V>(b * V::load(from + at, count));
               }), count);
    });
  });
  return out;
}

Tensor softplus_pool_tangent(Tensor x, Tensor dx, double beta) {
  const Smooth call = checked_smooth(x, &dx, nullptr, true);
  Tensor out = empty_smooth(x, true, 2);
  for_float_or_double(x, [&](auto element) {
    using A = decltype(element);
    const A *from = data<A>(x), *dfrom = data<A>(dx), b = A(beta);
    A* to = mutable_data<A>(out);
    over_cells<A>(call, [=, &call](auto v, int64_t first, int64_t cell, auto count) DDLNL_INLINE {
      using V = decltype(v);
      V::store(to + cell, A(0.25) * cell_sum<V>(first, call, [&](int64_t at) DDLNL_INLINE {
                 return sigmoid<V>(b * V::load(from + at, count)) * V::load(dfrom + at, count);
               }), count);
    });
  });
  return out;
}

Tensor softplus_pool_backward(Tensor gradient, Tensor x, double beta) {
  const Smooth call = checked_smooth(x, nullptr, &gradient, true);
  Tensor out = empty_smooth(x, true);
  for_float_or_double(x, [&](auto element) {
    using A = decltype(element);
    const A *from = data<A>(x), *above = data<A>(gradient), b = A(beta);
    A* to = mutable_data<A>(out);
    const int64_t line = call.width * call.channels;
    if (call.height % 2 || call.width % 2) std::fill_n(to, x.numel(), A(0));
    over_cells<A>(call, [=, &call](auto v, int64_t first, int64_t cell, auto count) DDLNL_INLINE {
      using V = decltype(v);
      const auto quarter = A(0.25) * V::load(above + cell, count);
      for (const int64_t at : {first, first + call.channels, first + line, first + line + call.channels}) {
        V::store(to + at, sigmoid<V>(b * V::load(from + at, count)) * quarter, count);
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CPU, m) {
  m.impl("softplus_pool", TORCH_BOX(&softplus_pool));
  m.impl("softplus_pool_tangent", TORCH_BOX(&softplus_pool_tangent));
  m.impl("softplus_pool_backward", TORCH_BOX(&softplus_pool_backward));
}

}  // namespace ddlnl
