// Compiles one piece of work for several instruction sets and runs the widest that this processor has.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <bit>
#include <cstdint>
#include <type_traits>

// DDLNL_ONE_PATH leaves only what every processor runs, a third of the code for the sanitizers to compile.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(DDLNL_ONE_PATH)
#define DDLNL_X86 1
#endif

// A lambda with this attribute is inlined into each of the functions below, and so compiled once for each.
#define DDLNL_INLINE __attribute__((always_inline))

namespace ddlnl {

// How many bytes a vector has where a piece of work runs.
template <int64_t Bytes>
using VectorBytes = std::integral_constant<int64_t, Bytes>;

#ifdef DDLNL_X86
// GCC by itself stays at half the width; clang ignores an attribute with a word that it does not know.
#ifdef __clang__
#define DDLNL_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,fma"
#else
#define DDLNL_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512"
#endif

template <typename Work>
__attribute__((target(DDLNL_AVX512))) void with_avx512(const Work& work) {
  work(VectorBytes<64>{});
}

template <typename Work>
__attribute__((target("avx2,fma"))) void with_avx2(const Work& work) {
  work(VectorBytes<32>{});
}
#endif

// Runs work(VectorBytes), a lambda marked DDLNL_INLINE.
template <typename Work>
void with_widest_vectors(const Work& work) {
#ifdef DDLNL_X86
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx512) return with_avx512(work);
  if (avx2) return with_avx2(work);
#endif
  work(VectorBytes<16>{});
}

// The number that an element stands for, and the element nearest to a number: for bfloat16 without the branches of its
// own conversions, which keep a loop from being vectorised.
inline float number(float x) { return x; }
inline double number(double x) { return x; }
inline float number(torch::headeronly::BFloat16 x) { return std::bit_cast<float>(uint32_t{x.x} << 16); }

template <typename T, typename A>
inline T rounded(A x) {
  return T(x);
}
template <>
inline torch::headeronly::BFloat16 rounded(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x == x ? nearest : 0x7FC0), torch::headeronly::BFloat16::from_bits()};
}

}  // namespace ddlnl
