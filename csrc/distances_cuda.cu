// The matching losses on CUDA: the two sums of the trajectory distance, and class means with their adjoint.
//
// No atomics: every sum is taken in an order that depends on the shape alone, so that a run repeats exactly.

#include <algorithm>
#include <tuple>

#include "cuda.h"
#include "distances.h"

namespace ddlnl {
namespace {

using torch::stable::contiguous;

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kPerThread = 16, kChunk = kThreads * kPerThread;

// Two sums over a block in a fixed tree; thread 0 has the result.
__device__ double2 block_sum(double2 mine) {
  __shared__ double2 partial[kThreads];
  partial[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      partial[threadIdx.x].x += partial[threadIdx.x + half].x;
      partial[threadIdx.x].y += partial[threadIdx.x + half].y;
    }
  }
  return threadIdx.x == 0 ? partial[0] : mine;  // others would read while thread 0 writes
}

// One block per chunk of a vector: its share of both sums.
template <typename T>
__global__ void chunk_sums(const T* student, const T* target, const T* start, double2* partial, int64_t length,
                           int64_t chunks) {
  using A = typename Computed<T>::type;
  const int64_t row = blockIdx.x / chunks * length, first = blockIdx.x % chunks * kChunk;
  const int64_t last = min(first + kChunk, length);
  double2 sums{0, 0};
  for (int64_t i = row + first + threadIdx.x; i < row + last; i += kThreads) {
    const double goal = A(target[i]), near = A(student[i]) - goal, far = A(start[i]) - goal;
    sums.x += near * near;
    sums.y += far * far;
  }
  sums = block_sum(sums);
  if (threadIdx.x == 0) partial[blockIdx.x] = sums;
}

// One block per vector: the sum of its chunks.
__global__ void vector_sums(const double2* partial, double2* out, int64_t chunks) {
  double2 sums{0, 0};
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) {
    const double2 one = partial[blockIdx.x * chunks + i];
    sums.x += one.x;
    sums.y += one.y;
  }
  sums = block_sum(sums);
  if (threadIdx.x == 0) out[blockIdx.x] = sums;
}

Tensor trajectory_distance_sums(Tensor student, Tensor target, Tensor start) {
  const Vectors vectors(student, target, start);
  const DeviceGuard guard(student.get_device_index());
  student = contiguous(student);
  target = contiguous(target);
  start = contiguous(start);
  const Tensor out = vectors.sums(student);
  if (vectors.count == 0) return out;
  const int64_t chunks = pieces(vectors.length, kChunk);
  const Tensor partial = empty_like_of(student, {vectors.count, chunks, 2}, ScalarType::Double);
  const cudaStream_t stream = stream_of(student);
  for_element_type(student, "trajectory_distance_sums", [&](auto element) {
    using T = decltype(element);
    const unsigned blocks = grid(vectors.count * chunks, "trajectory_distance_sums");
    if (blocks == 0) return;
    chunk_sums<T><<<blocks, kThreads, 0, stream>>>(data<T>(student), data<T>(target), data<T>(start),
                                                   mutable_data<double2>(partial), vectors.length, chunks);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  vector_sums<<<grid(vectors.count, "trajectory_distance_sums"), kThreads, 0, stream>>>(
      data<double2>(partial), mutable_data<double2>(out), chunks);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

// One block per class and 256 columns, one thread per column. Labels are read 256 at a time; the rows among them that
// belong to the class are listed in order, so that threads do not walk past the others.
template <typename T, typename A>
__global__ void sum_classes(const T* features, const int64_t* labels, A* means, A* counts, Labelled size,
                            int64_t blocks) {
  __shared__ int members[kThreads], votes_of[kWarps];
  const int64_t class_index = blockIdx.x / blocks, column = blockIdx.x % blocks * kThreads + threadIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  A sum = 0;
  int64_t count = 0;
  for (int64_t first = 0; first < size.rows; first += kThreads) {
    const int64_t row = first + threadIdx.x;
    const bool mine = row < size.rows && labels[row] == class_index;
    const unsigned votes = __ballot_sync(0xffffffffu, mine);
    if (lane == 0) votes_of[warp] = __popc(votes);
    __syncthreads();
    int place = __popc(votes & ((1u << lane) - 1)), found = 0;
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) place += votes_of[other];
      found += votes_of[other];
    }
    if (mine) members[place] = threadIdx.x;
    __syncthreads();
    if (column < size.columns) {
      for (int i = 0; i < found; ++i) sum += A(features[(first + members[i]) * size.columns + column]);
    }
    count += found;
    __syncthreads();
  }
  if (column < size.columns) means[class_index * size.columns + column] = sum / A(count > 0 ? count : 1);
  if (blockIdx.x % blocks == 0 && threadIdx.x == 0) counts[class_index] = A(count);
}

// A row whose label is no class counts nowhere: to see it here would cost a wait for the device.
std::tuple<Tensor, Tensor> class_means(Tensor features, Tensor labels, int64_t num_classes) {
  const Labelled size = Labelled::features(features, labels, num_classes);
  const DeviceGuard guard(features.get_device_index());
  features = contiguous(features);
  labels = contiguous(labels);
  const Tensor means = empty_like_of(features, {size.classes, size.columns}, computed_type(features));
  const Tensor counts = empty_like_of(features, {size.classes}, computed_type(features));
  for_element_type(features, "class_means", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const int64_t blocks = std::max<int64_t>(1, pieces(size.columns, kThreads));  // counts exist without columns
    sum_classes<T, A><<<grid(size.classes * blocks, "class_means"), kThreads, 0, stream_of(features)>>>(
        data<T>(features), data<int64_t>(labels), mutable_data<A>(means), mutable_data<A>(counts), size, blocks);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {means, counts};
}

template <typename T, typename A>
__global__ void spread_classes(const T* gradient, const int64_t* labels, const A* counts, T* out, Labelled size) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size.rows * size.columns) return;
  const int64_t label = labels[at / size.columns];
  const bool known = label >= 0 && label < size.classes;
  out[at] = known ? T(A(gradient[label * size.columns + at % size.columns]) / counts[label]) : T(0.0f);
}

// A row whose label is no class gets 0.
Tensor class_means_adjoint(Tensor gradient, Tensor labels, Tensor counts) {
  const Labelled size = Labelled::adjoint(gradient, labels, counts);
  const DeviceGuard guard(gradient.get_device_index());
  gradient = contiguous(gradient);
  labels = contiguous(labels);
  counts = contiguous(counts);
  const Tensor out = empty_like_of(gradient, {size.rows, size.columns}, gradient.scalar_type());
  for_element_type(gradient, "class_means_adjoint", [&](auto element) {
    using T = decltype(element);
    using A = typename Computed<T>::type;
    const unsigned blocks = grid(pieces(size.rows * size.columns, kThreads), "class_means_adjoint");
    if (blocks == 0) return;
    spread_classes<T, A><<<blocks, kThreads, 0, stream_of(gradient)>>>(
        data<T>(gradient), data<int64_t>(labels), data<A>(counts), mutable_data<T>(out), size);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CUDA, m) {
  m.impl("trajectory_distance_sums", TORCH_BOX(&trajectory_distance_sums));
  m.impl("class_means", TORCH_BOX(&class_means));
  m.impl("class_means_adjoint", TORCH_BOX(&class_means_adjoint));
}

}  // namespace ddlnl
