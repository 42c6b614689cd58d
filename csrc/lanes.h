// Numbers side by side in one register, by the vector types that GCC and clang share. Left to itself GCC takes half of the
// width for bfloat16, and less where it fears that two pointers meet.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu.h"

// Every function here is inlined, so none of them hands a vector to another by rules that differ between processors.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace ddlnl {

template <typename To, typename From>
DDLNL_INLINE inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename Element, int64_t Count>
struct VectorOf {
  typedef Element type __attribute__((vector_size(Count * sizeof(Element))));
};

// Vectors of numbers of type A, Bytes wide. A `count` of elements is `All`, or fewer; lanes without an element are 0.
template <typename A, int64_t Bytes>
struct Lanes {
  using Number = A;
  static constexpr int64_t kCount = Bytes / sizeof(A);
  using All = std::integral_constant<int64_t, kCount>;
  using Vector = typename VectorOf<A, kCount>::type;
  using Bits = typename VectorOf<uint32_t, kCount>::type;
  using HalfBits = typename VectorOf<uint16_t, kCount>::type;

  template <typename Count = All>
  DDLNL_INLINE static Vector load(const A* from, Count count = {}) {
    Vector numbers{};
    std::memcpy(&numbers, from, count * sizeof(A));
    return numbers;
  }

  template <typename Count = All>
  DDLNL_INLINE static Vector load(const torch::headeronly::BFloat16* from, Count count = {}) {
    HalfBits half{};
    std::memcpy(&half, from, count * sizeof(*from));
    return same_bits<Vector>(__builtin_convertvector(half, Bits) << 16);
  }

  template <typename Count = All>
  DDLNL_INLINE static void store(A* to, const Vector& numbers, Count count = {}) {
    std::memcpy(to, &numbers, count * sizeof(A));
  }

  // To the nearest, as `rounded` does.
  template <typename Count = All>
  DDLNL_INLINE static void store(torch::headeronly::BFloat16* to, const Vector& numbers, Count count = {}) {
    const Bits bits = same_bits<Bits>(numbers);
    const Bits nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const HalfBits half = __builtin_convertvector(numbers == numbers ? nearest : Bits{} + 0x7FC0, HalfBits);
    std::memcpy(to, &half, count * sizeof(*to));
  }

  // Calls body(first, count) for runs of at most kCount of `total` numbers.
  template <typename Body>
  DDLNL_INLINE static void over(int64_t total, const Body& body) {
    int64_t first = 0;
    for (; first + kCount <= total; first += kCount) body(first, All{});
    if (first < total) body(first, total - first);
  }
};

}  // namespace ddlnl
