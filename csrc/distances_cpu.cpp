// The matching losses on the CPU: the two sums of the trajectory distance, and class means with their adjoint.
//
// Every sum is taken in an order that depends on the shape alone, so one thread and many give the same bits.

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu.h"
#include "distances.h"

namespace ddlnl {
namespace {

using torch::stable::contiguous;
using torch::stable::parallel_for;

// Elements per partial sum; elements that are worth a thread; bytes of class sums that stay in the second-level cache.
constexpr int64_t kChunk = 4096, kWork = 32768, kCached = 1 << 18;

int64_t pieces(int64_t length, int64_t size) { return (length + size - 1) / size; }

// How many pieces of work, `size` elements each, one thread takes at least.
int64_t grain(int64_t size) { return std::max<int64_t>(1, kWork / std::max<int64_t>(1, size)); }

// The inner loops are functions of their own: a pointer that a lambda captures is read again for every element.

// sums[0], sums[1] = |from - to|^2, |origin - to|^2.
template <typename T>
inline DDLNL_INLINE void squared_distances(const T* from, const T* to, const T* origin, int64_t count, double* sums) {
  using A = typename Computed<T>::type;  // bfloat16 becomes double by way of float
  double near = 0, far = 0;
#pragma omp simd reduction(+ : near, far)
  for (int64_t i = 0; i < count; ++i) {
    const double goal = A(to[i]), a = A(from[i]) - goal, b = A(origin[i]) - goal;
    near += a * a;
    far += b * b;
  }
  sums[0] = near;
  sums[1] = far;
}

template <typename T, typename A>
inline DDLNL_INLINE void add(A* sums, const T* values, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sums[i] += A(values[i]);
}

template <typename T, typename A>
inline DDLNL_INLINE void divide(T* out, const T* values, A divisor, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = T(A(values[i]) / divisor);
}

Tensor trajectory_distance_sums(Tensor student, Tensor target, Tensor start) {
  const Vectors vectors(student, target, start);
  student = contiguous(student);
  target = contiguous(target);
  start = contiguous(start);
  const Tensor out = vectors.sums(student);
  const int64_t length = vectors.length, chunks = pieces(length, kChunk);
  std::vector<double> partial(2 * vectors.count * chunks);
  for_element_type(student, "trajectory_distance_sums", [&](auto element) {
    using T = decltype(element);
    const T *from = data<T>(student), *to = data<T>(target), *origin = data<T>(start);
    parallel_for(0, vectors.count * chunks, grain(kChunk), [&](int64_t begin, int64_t end) {
      with_widest_vectors([&](auto) DDLNL_INLINE {
        for (int64_t at = begin; at < end; ++at) {
          const int64_t done = at % chunks * kChunk, first = at / chunks * length + done;
          squared_distances(from + first, to + first, origin + first, std::min(kChunk, length - done),
                            &partial[2 * at]);
        }
      });
    });
  });
  double* sums = mutable_data<double>(out);
  for (int64_t vector = 0; vector < vectors.count; ++vector) {
    double near = 0, far = 0;
    for (int64_t at = vector * chunks; at < (vector + 1) * chunks; ++at) {
      near += partial[2 * at];
      far += partial[2 * at + 1];
    }
    sums[2 * vector] = near;
    sums[2 * vector + 1] = far;
  }
  return out;
}

void check_range(const int64_t* labels, const Labelled& size) {
  for (int64_t row = 0; row < size.rows; ++row) {
    DDLNL_CHECK(labels[row] >= 0 && labels[row] < size.classes, "Label ", labels[row], " of row ", row,
                " is not one of the ", size.classes, " classes 0 to ", size.classes - 1, ".");
  }
}

// Columns per piece of work: few enough for the cache and for all threads. They do not change the order of any sum.
int64_t columns_at_once(const Labelled& size, int64_t bytes) {
  const int64_t cached = kCached / (size.classes * bytes), shared = size.columns / torch::stable::get_num_threads();
  return std::max<int64_t>(64, std::min(cached, shared + 1));
}

std::tuple<Tensor, Tensor> class_means(Tensor features, Tensor labels, int64_t num_classes) {
  const Labelled size = Labelled::features(features, labels, num_classes);
  features = contiguous(features);
  labels = contiguous(labels);
  const int64_t* label = data<int64_t>(labels);
  check_range(label, size);
  const Tensor means = empty_like_of(features, {size.classes, size.columns}, computed_type(features));
  const Tensor counts = empty_like_of(features, {size.classes}, computed_type(features));
  for_element_type(features, "class_means", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    A* count = mutable_data<A>(counts);
    std::fill_n(count, size.classes, A(0));
    for (int64_t row = 0; row < size.rows; ++row) count[label[row]] += 1;
    const T* from = data<T>(features);
    A* to = mutable_data<A>(means);
    const int64_t block_size = columns_at_once(size, sizeof(A)), blocks = pieces(size.columns, block_size);
    parallel_for(0, blocks, grain((size.rows + size.classes) * block_size), [&](int64_t begin, int64_t end) {
      with_widest_vectors([&](auto) DDLNL_INLINE {
        // Block by block, so that the sums of all classes stay in the cache while the rows pass by.
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * block_size, width = std::min(block_size, size.columns - first);
          for (int64_t k = 0; k < size.classes; ++k) std::fill_n(to + k * size.columns + first, width, A(0));
          for (int64_t row = 0; row < size.rows; ++row) {
            add(to + label[row] * size.columns + first, from + row * size.columns + first, width);
          }
          for (int64_t k = 0; k < size.classes; ++k) {
            A* sum = to + k * size.columns + first;
            divide(sum, sum, std::max(count[k], A(1)), width);
          }
        }
      });
    });
  });
  return {means, counts};
}

Tensor class_means_adjoint(Tensor gradient, Tensor labels, Tensor counts) {
  const Labelled size = Labelled::adjoint(gradient, labels, counts);
  gradient = contiguous(gradient);
  labels = contiguous(labels);
  counts = contiguous(counts);
  const int64_t* label = data<int64_t>(labels);
  check_range(label, size);
  const Tensor out = empty_like_of(gradient, {size.rows, size.columns}, gradient.scalar_type());
  for_element_type(gradient, "class_means_adjoint", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const T* from = data<T>(gradient);
    const A* count = data<A>(counts);
    T* to = mutable_data<T>(out);
    parallel_for(0, size.rows, grain(size.columns), [&](int64_t begin, int64_t end) {
      with_widest_vectors([&](auto) DDLNL_INLINE {
        for (int64_t row = begin; row < end; ++row) {
          divide(to + row * size.columns, from + label[row] * size.columns, count[label[row]], size.columns);
        }
      });
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CPU, m) {
  m.impl("trajectory_distance_sums", TORCH_BOX(&trajectory_distance_sums));
  m.impl("class_means", TORCH_BOX(&class_means));
  m.impl("class_means_adjoint", TORCH_BOX(&class_means_adjoint));
}

}  // namespace ddlnl
