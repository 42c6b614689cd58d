// What the CUDA kernels of every family share: the stream, launches, and sixteen bytes at a time.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "common.h"

namespace ddlnl {

using torch::stable::accelerator::DeviceGuard;

constexpr int kWarp = 32;
constexpr int64_t kMostBlocks = 2147483647;     // the largest grid
constexpr int64_t kSharedByDefault = 48 << 10;  // bytes of shared memory that a kernel has without asking

inline cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int64_t pieces(int64_t length, int64_t size) { return (length + size - 1) / size; }

inline unsigned grid(int64_t blocks, const char* name) {
  DDLNL_CHECK(blocks <= kMostBlocks, name, " got more elements than one launch can cover.");
  return static_cast<unsigned>(blocks);
}

// Lets a kernel use so many bytes of dynamic shared memory beside `fixed` bytes of its own, or raises a sentence.
template <typename... Parameters>
void reserve_shared(void (*kernel)(Parameters...), int64_t bytes, int64_t fixed, int device, const char* name) {
  int most = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  DDLNL_CHECK(bytes + fixed <= most, name, " needs ", bytes + fixed, " bytes of shared memory for images of this size; a "
              "block of this GPU has ", most, ".");
  if (bytes + fixed > kSharedByDefault) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
}

// Sixteen bytes of elements, moved at once.
template <typename E>
struct alignas(16) Pack {
  static constexpr int kItems = 16 / sizeof(E);
  E items[kItems];
};

template <typename E>
__device__ bool packs(const E* at, int size) {
  return size % Pack<E>::kItems == 0 && reinterpret_cast<uintptr_t>(at) % sizeof(Pack<E>) == 0;
}

// The whole block copies `size` elements of global memory to numbers in shared memory.
template <typename E, typename A>
__device__ void load(const E* from, A* to, int size) {
  constexpr int kItems = Pack<E>::kItems;
  if (!packs(from, size)) {
    for (int p = threadIdx.x; p < size; p += blockDim.x) to[p] = static_cast<A>(from[p]);
    return;
  }
  for (int k = threadIdx.x; k < size / kItems; k += blockDim.x) {
    const Pack<E> pack = reinterpret_cast<const Pack<E>*>(from)[k];
#pragma unroll
    for (int item = 0; item < kItems; ++item) to[k * kItems + item] = static_cast<A>(pack.items[item]);
  }
}

// And back.
template <typename E, typename A>
__device__ void store(const A* from, E* to, int size) {
  constexpr int kItems = Pack<E>::kItems;
  if (!packs(to, size)) {
    for (int p = threadIdx.x; p < size; p += blockDim.x) to[p] = static_cast<E>(from[p]);
    return;
  }
  for (int k = threadIdx.x; k < size / kItems; k += blockDim.x) {
    Pack<E> pack;
#pragma unroll
    for (int item = 0; item < kItems; ++item) pack.items[item] = static_cast<E>(from[k * kItems + item]);
    reinterpret_cast<Pack<E>*>(to)[k] = pack;
  }
}

}  // namespace ddlnl
