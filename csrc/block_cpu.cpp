// Instance norm + ReLU + 2x2 average pool on the CPU: value, gradient, and value with tangent. Formulas: block.h.
//
// Images are independent, so threads share them. An image is read from memory once and then found in the cache. In both
// memory layouts the inner loops run over neighbouring elements: over the pixels of a plane, or over the channels of a pixel.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "block.h"
#include "block_last.h"
#include "block_planes.h"
#include "cpu.h"

namespace ddlnl {
namespace {

// Calls work(first, last, VectorBytes) on runs of images, compiled for the widest vectors.
template <typename Work>
void over_images(const Block& block, const Work& work) {
  if (block.images * block.channels == 0) return;
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, block.channels * block.plane()));
  torch::stable::parallel_for(0, block.images, grain, [&](int64_t first, int64_t last) {
    with_widest_vectors([&](auto bytes) DDLNL_INLINE { work(first, last, bytes); });
  });
}

// Calls body(std::true_type) for a block with the norm, body(std::false_type) for one without.
template <typename Body>
FORCE_INLINE void with_norm(const Block& block, const Body& body) {
  block.norm ? body(std::true_type{}) : body(std::false_type{});
}

// (G, C) from per-image shares (N, C), added in the order of the images whatever the threads do; empty without rows.
template <typename A>
Tensor summed(const Tensor& x, const Block& block, const OptionalTensor& rows, const std::vector<A>& shares) {
  Tensor result = empty_rows(x, block, rows);
  if (!rows) return result;
  A* out = mutable_data<A>(result);
  std::vector<A> total(block.channels);
  const int64_t run = block.images / block.groups;
  for (int64_t group = 0; group < block.groups; ++group) {
    std::fill(total.begin(), total.end(), A(0));
    for (int64_t image = group * run; image < (group + 1) * run; ++image) {
      for (int64_t c = 0; c < block.channels; ++c) total[c] += shares[image * block.channels + c];
    }
    for (int64_t c = 0; c < block.channels; ++c) out[group * block.channels + c] = total[c];
  }
  return result;
}

std::tuple<Tensor, Tensor> norm_relu_pool(Tensor x, OptionalTensor weight, OptionalTensor bias, double eps, bool norm) {
  const Block block = checked_block(x, norm, {&weight, &bias}, {}, {});
  Tensor out = empty_like_block(x, block, 2);
  Tensor statistics = empty_statistics(x, kValueStatistics);
  for_element_type(x, "norm_relu_pool", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T* from = data<T>(x);
    const A *w = data_or_null<A>(weight), *b = data_or_null<A>(bias);
    T* to = mutable_data<T>(out);
    A* kept = mutable_data<A>(statistics);
    over_images(block, [&](int64_t first, int64_t last, auto bytes) DDLNL_INLINE {
      using K = Channels<A>;
      using V = Lanes<A, decltype(bytes)::value>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 0 : block.plane());
      for (int64_t image = first; image < last; ++image) {
        of.set(K::kW, w, block.group_of(image), A(1));
        of.set(K::kB, b, block.group_of(image), A(0));
        const T* here = from + image * size;
        if (block.last) {
          last::value_statistics<V>(here, block, A(eps), of);
          last::value_image<V>(here, to + image * pooled, block, of);
        } else {
          planes::value_image(here, to + image * pooled, block, A(eps), of, scratch.data());
        }
        of.keep(kept + image * kValueStatistics * block.channels, kValueStatistics);
      }
    });
  });
  return {out, statistics};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_backward(Tensor gradient, Tensor x, OptionalTensor weight,
                                                           OptionalTensor bias, Tensor statistics, bool norm) {
  const Block block = checked_block(x, norm, {&weight, &bias}, {}, {&gradient});
  check_statistics(statistics, x, kValueStatistics);
  Tensor dx = empty_like_block(x, block), dweight = dx, dbias = dx;
  for_element_type(x, "norm_relu_pool", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T *from = data<T>(x), *above = data<T>(gradient);
    const A *w = data_or_null<A>(weight), *b = data_or_null<A>(bias), *kept = data<A>(statistics);
    T* to = mutable_data<T>(dx);
    std::vector<A> dw(block.images * block.channels), db(block.images * block.channels);
    over_images(block, [&](int64_t first, int64_t last, auto bytes) DDLNL_INLINE {
      using K = Channels<A>;
      using V = Lanes<A, decltype(bytes)::value>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 0 : block.plane());
      for (int64_t image = first; image < last; ++image) {
        of.set(K::kW, w, block.group_of(image), A(1));
        of.set(K::kB, b, block.group_of(image), A(0));
        of.recall(kept + image * kValueStatistics * block.channels, kValueStatistics);
        const T *g = above + image * pooled, *here = from + image * size;
        A *dw_here = dw.data() + image * block.channels, *db_here = db.data() + image * block.channels;
        if (block.last) {
          last::backward_image<V>(g, here, to + image * size, dw_here, db_here, block, of);
          continue;
        }
        with_norm(block, [&](auto norm) DDLNL_INLINE {
          planes::backward_image<decltype(norm)::value>(g, here, to + image * size, dw_here, db_here, block, of,
                                                        scratch.data());
        });
      }
    });
    dweight = summed<A>(x, block, weight, dw);
    dbias = summed<A>(x, block, bias, db);
  });
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_tangent(Tensor x, Tensor dx, OptionalTensor weight,
                                                          OptionalTensor dweight, OptionalTensor bias,
                                                          OptionalTensor dbias, double eps, bool norm) {
  const Block block = checked_block(x, norm, {&weight, &dweight, &bias, &dbias}, {&dx}, {});
  Tensor out = empty_like_block(x, block, 2);
  Tensor dout = empty_like_block(x, block, 2);
  Tensor statistics = empty_statistics(x, kTangentStatistics);
  for_element_type(x, "norm_relu_pool_tangent", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T *from = data<T>(x), *dfrom = data<T>(dx);
    const A *w = data_or_null<A>(weight), *b = data_or_null<A>(bias);
    const A *dw = data_or_null<A>(dweight), *db = data_or_null<A>(dbias);
    T *to = mutable_data<T>(out), *dto = mutable_data<T>(dout);
    A* kept = mutable_data<A>(statistics);
    over_images(block, [&](int64_t first, int64_t last, auto bytes) DDLNL_INLINE {
      using K = Channels<A>;
      using V = Lanes<A, decltype(bytes)::value>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 0 : 2 * block.plane());
      for (int64_t image = first; image < last; ++image) {
        const int64_t group = block.group_of(image);
        of.set(K::kW, w, group, A(1));
        of.set(K::kB, b, group, A(0));
        of.set(K::kDw, dw, group, A(0));
        of.set(K::kDb, db, group, A(0));
        const T *here = from + image * size, *dhere = dfrom + image * size;
        T *out_here = to + image * pooled, *dout_here = dto + image * pooled;
        if (block.last) {
          last::value_statistics<V>(here, block, A(eps), of);
          last::tangent_statistics<V>(here, dhere, block, of);
          last::tangent_image<V>(here, dhere, out_here, dout_here, block, of, dw != nullptr);
        } else {
          with_norm(block, [&](auto norm) DDLNL_INLINE {
            planes::tangent_image<decltype(norm)::value>(here, dhere, out_here, dout_here, block, A(eps), of,
                                                         dw != nullptr, scratch.data());
          });
        }
        of.keep(kept + image * kTangentStatistics * block.channels, kTangentStatistics);
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
  Tensor gx = empty_like_block(x, block);
  Tensor gdx = empty_like_block(x, block), gw = gx, gdw = gx, gb = gx, gdb = gx;
  for_element_type(x, "norm_relu_pool_tangent", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t size = block.channels * block.plane(), pooled = block.channels * block.pooled();
    const T *above = data<T>(gradient), *dabove = data<T>(dgradient), *from = data<T>(x), *dfrom = data<T>(dx);
    const A *w = data_or_null<A>(weight), *b = data_or_null<A>(bias), *dw = data_or_null<A>(dweight);
    const A* kept = data<A>(statistics);
    T *to = mutable_data<T>(gx), *dto = mutable_data<T>(gdx);
    std::array<std::vector<A>, kSums> sums;
    for (auto& one : sums) one.resize(block.images * block.channels);
    over_images(block, [&](int64_t first, int64_t last, auto bytes) DDLNL_INLINE {
      using K = Channels<A>;
      using V = Lanes<A, decltype(bytes)::value>;
      K of(block.channels);
      std::vector<A> scratch(block.last ? 0 : 2 * block.plane());
      for (int64_t image = first; image < last; ++image) {
        const int64_t group = block.group_of(image);
        of.set(K::kW, w, group, A(1));
        of.set(K::kB, b, group, A(0));
        of.set(K::kDw, dw, group, A(0));
        of.recall(kept + image * kTangentStatistics * block.channels, kTangentStatistics);
        A* shares[kSums];
        for (int64_t one = 0; one < kSums; ++one) shares[one] = sums[one].data() + image * block.channels;
        const T *g = above + image * pooled, *dg = dabove + image * pooled;
        const T *here = from + image * size, *dhere = dfrom + image * size;
        T *gx_here = to + image * size, *gdx_here = dto + image * size;
        if (block.last) {
          last::tangent_backward_image<V>(g, dg, here, dhere, gx_here, gdx_here, shares, block, of);
          continue;
        }
        with_norm(block, [&](auto norm) DDLNL_INLINE {
          planes::tangent_backward_image<decltype(norm)::value>(g, dg, here, dhere, gx_here, gdx_here, shares, block,
                                                                of, scratch.data());
        });
      }
    });
    for (size_t at = 0; at < sums[kAx].size(); ++at) sums[kAx][at] += sums[kEd][at];
    gw = summed<A>(x, block, weight, sums[kAx]);
    gdw = summed<A>(x, block, dweight, sums[kEx]);
    gb = summed<A>(x, block, bias, sums[kA]);
    gdb = summed<A>(x, block, dbias, sums[kE]);
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
