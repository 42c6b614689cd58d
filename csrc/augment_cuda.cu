// Differentiable siamese augmentation on CUDA: one block per image, which runs through its program in shared memory.
// The operators allocate their result and launch one kernel on the current stream, so they can be captured in a graph.

#include "augment.h"
#include "cuda.h"

namespace ddlnl::augment {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kFixedShared = 1 << 10;  // bytes that the kernels keep besides the images, rounded up

// The pixels k, k + kThreads, ... of `size`.
#define DDLNL_OVER(k, size) for (int k = threadIdx.x; k < static_cast<int>(size); k += kThreads)

// The sum over the block, the same in every thread, always added in the same order.
template <typename T>
__device__ T block_sum(T value) {
  __shared__ T warps[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) total += warps[warp];
  __syncthreads();  // the next sum overwrites the parts of this one
  return total;
}

// In place: a thread reads and writes its own pixels only.
template <typename T>
__device__ void color(T* image, const Call& call, const T* row, bool affine) {
  const int plane = static_cast<int>(call.plane()), channels = static_cast<int>(call.channels);
  const T saturation = row[kSaturation], contrast = row[kContrast];
  const auto grey_at = [&](int p) {
    T sum = 0;
    for (int c = 0; c < channels; ++c) sum += image[c * plane + p];
    return sum / static_cast<T>(channels);
  };
  T part = 0;
  DDLNL_OVER(p, plane) { part += grey_at(p); }
  const T mean = block_sum(part) / static_cast<T>(plane);
  const T base = (1 - contrast) * mean + (affine ? row[kOffset] : T{0});
  DDLNL_OVER(p, plane) {
    const T rest = contrast * (1 - saturation) * grey_at(p) + base;
    for (int c = 0; c < channels; ++c) image[c * plane + p] = contrast * saturation * image[c * plane + p] + rest;
  }
}

// In place.
template <typename T>
__device__ void cutout(T* image, const Call& call, const T* row) {
  const int height = static_cast<int>(call.height), width = static_cast<int>(call.width);
  const Span rows = box_of(row[kCutRow], height), columns = box_of(row[kCutColumn], width);
  DDLNL_OVER(p, call.size()) {
    const int i = p / width % height, j = p % width;
    if (i >= rows.first && i < rows.last && j >= columns.first && j < columns.last) image[p] = 0;
  }
}

template <typename T>
__device__ void crop(const T* in, T* out, const Call& call, int row_shift, int column_shift) {
  const int height = static_cast<int>(call.height), width = static_cast<int>(call.width);
  DDLNL_OVER(p, call.size()) {
    const int i = p / width % height + row_shift, j = p % width + column_shift;
    const bool inside = i >= 0 && i < height && j >= 0 && j < width;
    out[p] = inside ? in[p + row_shift * width + column_shift] : T{0};
  }
}

template <typename T>
__device__ void flip(const T* in, T* out, const Call& call) {
  const int width = static_cast<int>(call.width);
  DDLNL_OVER(p, call.size()) {
    const int j = p % width;
    out[p] = in[p - j + width - 1 - j];
  }
}

// The four neighbours of a sampling position; `right` and `down` are the weights of the upper ones.
template <typename T>
struct Sample {
  int top, left;
  T right, down;

  __device__ T weight(int row, int column) const { return (row ? down : 1 - down) * (column ? right : 1 - right); }
};

// Where pixel (i, j) is sampled by scale or rotate.
template <typename T>
__device__ Sample<T> sample_at(int32_t code, int i, int j, const Call& call, const T* row) {
  T v, u;
  if (code == kScale) {
    v = scaled(row[kScaleRow], i, call.height);
    u = scaled(row[kScaleColumn], j, call.width);
  } else {
    rotated(row[kCosine], row[kSine], i, j, call, &v, &u);
  }
  Sample<T> sample;
  sample.top = lower_neighbour(v, call.height, &sample.down);
  sample.left = lower_neighbour(u, call.width, &sample.right);
  return sample;
}

template <typename T>
__device__ void resample(int32_t code, const T* in, T* out, const Call& call, const T* row) {
  const int height = static_cast<int>(call.height), width = static_cast<int>(call.width), plane = height * width;
  DDLNL_OVER(p, plane) {
    const Sample<T> sample = sample_at(code, p / width, p % width, call, row);
    for (int c = 0; c < static_cast<int>(call.channels); ++c) {
      T total = 0;
      for (int a = 0; a < 2; ++a) {
        for (int b = 0; b < 2; ++b) {
          const int i = sample.top + a, j = sample.left + b;
          if (i >= 0 && i < height && j >= 0 && j < width) {
            total += sample.weight(a, b) * in[c * plane + i * width + j];
          }
        }
      }
      out[c * plane + p] = total;
    }
  }
}

// The pixels of an axis within `reach` of `centre`, and a little more against rounding; all of them where that is no
// number.
template <typename T>
__device__ Span window(T centre, T reach, int64_t side) {
  const T low = centre - reach - T(0.01), high = centre + reach + T(0.01);
  if (!(low <= high)) return {0, side};
  return {first_pixel(low, side), first_pixel(std::floor(high) + 1, side)};
}

// The output pixels that may read input pixel (i, j): the input cell of half-width 1 about it, mapped back.
template <typename T>
__device__ void readers(int32_t code, int i, int j, const Call& call, const T* row, Span* rows, Span* columns) {
  const T middle_row = static_cast<T>(call.height - 1) / 2, middle_column = static_cast<T>(call.width - 1) / 2;
  const T v = i - middle_row, u = j - middle_column;
  if (code == kScale) {
    *rows = window(v / row[kScaleRow] + middle_row, 1 / std::abs(row[kScaleRow]), call.height);
    *columns = window(u / row[kScaleColumn] + middle_column, 1 / std::abs(row[kScaleColumn]), call.width);
  } else {
    const T cosine = row[kCosine], sine = row[kSine], norm = cosine * cosine + sine * sine;
    const T reach = (std::abs(cosine) + std::abs(sine)) / norm;
    *rows = window((cosine * v - sine * u) / norm + middle_row, reach, call.height);
    *columns = window((cosine * u + sine * v) / norm + middle_column, reach, call.width);
  }
}

// The transpose of resample without atomics: every thread gathers for its input pixels what the output pixels read.
template <typename T>
__device__ void resample_adjoint(int32_t code, const T* in, T* out, const Call& call, const T* row) {
  const int width = static_cast<int>(call.width), plane = static_cast<int>(call.plane());
  DDLNL_OVER(p, plane) {
    const int i = p / width, j = p % width;
    for (int c = 0; c < static_cast<int>(call.channels); ++c) out[c * plane + p] = 0;
    Span rows, columns;
    readers(code, i, j, call, row, &rows, &columns);
    for (int reader_row = rows.first; reader_row < rows.last; ++reader_row) {
      for (int reader_column = columns.first; reader_column < columns.last; ++reader_column) {
        const Sample<T> sample = sample_at(code, reader_row, reader_column, call, row);
        const int a = i - sample.top, b = j - sample.left;
        if (a < 0 || a > 1 || b < 0 || b > 1) continue;
        const T weight = sample.weight(a, b);
        const int from = reader_row * width + reader_column;
        for (int c = 0; c < static_cast<int>(call.channels); ++c) {
          out[c * plane + p] += weight * in[c * plane + from];
        }
      }
    }
  }
}

// Carries out one operation on the image in `from`; returns whether the result is in `to` instead.
template <typename T>
__device__ bool operation(int32_t code, Part part, T* from, T* to, const Call& call, const T* row) {
  const bool adjoint = part == Part::kAdjoint;
  switch (code) {
    case kColor:
      color(from, call, row, part == Part::kAffine);
      return false;
    case kCutout:
      cutout(from, call, row);
      return false;
    case kCrop: {
      const int sign = adjoint ? -1 : 1;
      crop(from, to, call, sign * static_cast<int>(shift_of(row[kRowShift], call.height)),
           sign * static_cast<int>(shift_of(row[kColumnShift], call.width)));
      return true;
    }
    case kFlip:
      if (!(row[kFlipped] > T(0.5))) return false;
      flip(from, to, call);
      return true;
    case kScale:
    case kRotate:
      if (adjoint) {
        resample_adjoint(code, from, to, call, row);
      } else {
        resample(code, from, to, call, row);
      }
      return true;
    default:  // an unknown code does nothing: a sentence about it would need the host to wait
      return false;
  }
}

// Runs the image in `from` through the program of result n; returns the buffer with the result. The block is in step
// before and after.
template <typename T>
__device__ T* run_program(T* from, T* to, const Call& call, const int32_t* codes, const T* table, int64_t n, Part part) {
  const T* const row = table + n / call.table_run * kColumns;
  const int32_t* const program = codes + n / call.code_run * call.stages;
  for (int64_t s = 0; s < call.stages; ++s) {
    const int32_t code = program[part == Part::kAdjoint ? call.stages - 1 - s : s];
    if (operation(code, part, from, to, call, row)) {
      T* const result = to;
      to = from;
      from = result;
    }
    __syncthreads();
  }
  return from;
}

template <typename T>
__device__ T* shared_buffers() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

// One block per result: images[index[n]] through its program.
template <typename E, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const E* images, E* result, const T* table, const int32_t* codes, const int64_t* index, Call call,
                   Part part) {
  const int64_t n = blockIdx.x, size = call.size();
  const int64_t source = index ? index[n] : n;
  T* const first = shared_buffers<T>();
  if (source >= 0 && source < call.sources) {
    load(images + source * size, first, size);
  } else {  // seen in the loss, where a sentence would need the host to wait
    DDLNL_OVER(k, size) { first[k] = static_cast<T>(nan("")); }
  }
  __syncthreads();
  store(run_program(first, first + size, call, codes, table, n, part), result + n * size, size);
}

// Without an index: one block per gradient.
template <typename E, typename T>
__global__ void __launch_bounds__(kThreads)
    adjoint_kernel(const E* gradient, E* result, const T* table, const int32_t* codes, Call call) {
  const int64_t n = blockIdx.x, size = call.size();
  T* const first = shared_buffers<T>();
  load(gradient + n * size, first, size);
  __syncthreads();
  store(run_program(first, first + size, call, codes, table, n, Part::kAdjoint), result + n * size, size);
}

// With an index: one block per source image adds up, in their order, the gradients of the results made from it.
template <typename E, typename T>
__global__ void __launch_bounds__(kThreads)
    indexed_adjoint_kernel(const E* gradient, E* result, const T* table, const int32_t* codes, const int64_t* index,
                           Call call) {
  __shared__ bool mine[kThreads];
  const int64_t target = blockIdx.x, size = call.size();
  T *const total = shared_buffers<T>(), *const first = total + size;
  DDLNL_OVER(k, size) { total[k] = 0; }
  for (int64_t start = 0; start < call.count; start += kThreads) {
    const int64_t own = start + threadIdx.x;
    const bool hit = own < call.count && index[own] == target;
    mine[threadIdx.x] = hit;
    if (!__syncthreads_or(hit)) continue;
    for (int k = 0; k < kThreads; ++k) {
      if (!mine[k]) continue;
      load(gradient + (start + k) * size, first, size);
      __syncthreads();
      const T* const part = run_program(first, first + size, call, codes, table, start + k, Part::kAdjoint);
      DDLNL_OVER(p, size) { total[p] += part[p]; }
      __syncthreads();  // before the next gradient overwrites this one
    }
    __syncthreads();  // before the next hits overwrite these
  }
  __syncthreads();
  store(total, result + target * size, size);
}

// Launches `kernel` with one block per image and shared memory for so many copies of an image.
template <typename T, typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int copies, const Call& call, const Tensor& images,
            Arguments... arguments) {
  const int device = images.get_device_index();
  const DeviceGuard guard(device);
  const int64_t bytes = copies * call.size() * static_cast<int64_t>(sizeof(T));
  reserve_shared(kernel, bytes, kFixedShared, device, "augment");
  kernel<<<grid(blocks, "augment"), kThreads, bytes, stream_of(images)>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor augment_cuda(const Tensor& images, const Tensor& table, const Tensor& codes, const std::optional<Tensor>& index,
                    bool linear) {
  const Call call = checked(images, table, codes, index, false, -1);
  Tensor result = torch::stable::new_empty(images, {call.count, call.channels, call.height, call.width});
  if (call.count * call.size() == 0) return result;
  for_element_type(images, "augment", [&](auto element) {
    using E = decltype(element);
    using T = typename Computed<E>::type;
    launch<T>(forward_kernel<E, T>, call.count, 2, call, images, images.const_data_ptr<E>(),
              result.mutable_data_ptr<E>(), table.const_data_ptr<T>(), codes.const_data_ptr<int32_t>(),
              index ? index->const_data_ptr<int64_t>() : nullptr, call, linear ? Part::kLinear : Part::kAffine);
  });
  return result;
}

Tensor augment_adjoint_cuda(const Tensor& gradient, const Tensor& table, const Tensor& codes,
                            const std::optional<Tensor>& index, int64_t count) {
  DDLNL_CHECK(count >= 0, "The adjoint of augment makes ", count, " images; it cannot make fewer than none.");
  const Call call = checked(gradient, table, codes, index, true, count);
  Tensor result = torch::stable::new_empty(gradient, {count, call.channels, call.height, call.width});
  if (count * call.size() == 0) return result;
  for_element_type(gradient, "augment_adjoint", [&](auto element) {
    using E = decltype(element);
    using T = typename Computed<E>::type;
    const E* const from = gradient.const_data_ptr<E>();
    E* const to = result.mutable_data_ptr<E>();
    const T* const rows = table.const_data_ptr<T>();
    const int32_t* const programs = codes.const_data_ptr<int32_t>();
    if (index) {
      launch<T>(indexed_adjoint_kernel<E, T>, count, 3, call, gradient, from, to, rows, programs,
                index->const_data_ptr<int64_t>(), call);
    } else {
      launch<T>(adjoint_kernel<E, T>, count, 2, call, gradient, from, to, rows, programs, call);
    }
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CUDA, m) {
  m.impl("augment", TORCH_BOX(&augment_cuda));
  m.impl("augment_adjoint", TORCH_BOX(&augment_adjoint_cuda));
}

}  // namespace
}  // namespace ddlnl::augment
