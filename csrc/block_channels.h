// What the CPU's kernels of the block tail keep about one image, for both memory layouts.
#pragma once

#include <algorithm>
#include <vector>

#include "block.h"
#include "lanes.h"

#define FORCE_INLINE inline DDLNL_INLINE

namespace ddlnl {

// Per-channel numbers of one image, a row for each kind, filled up to whole vectors with numbers that nobody reads.
template <typename A>
struct Channels {
  // First what is kept, in the order of Statistic; last what a kernel derives from the others for its own use.
  enum Row { kMean, kR, kDmean, kS, kW, kB, kDw, kDb, kSlope, kFirst, kSecond, kThird, kFourth, kFifth, kRows };
  static_assert(kR == int(Statistic::kScale) && kDmean == int(kTangentMean) && kS == int(kProjection));
  static constexpr int64_t kLine = 64 / sizeof(A);  // the widest vector
  explicit Channels(int64_t count)
      : count(count), stride((count + kLine - 1) / kLine * kLine), lines(kRows * stride / kLine) {}

  A* operator[](Row row) { return lines.data()->numbers + row * stride; }

  // A row of weights, or the value that stands for their absence.
  void set(Row row, const A* weights, int64_t group, A absent) {
    for (int64_t c = 0; c < count; ++c) (*this)[row][c] = weights ? weights[group * count + c] : absent;
  }

  // The first `kinds` rows to or from where an image's statistics are kept.
  void keep(A* kept, int64_t kinds) {
    for (int64_t row = 0; row < kinds; ++row) std::copy_n((*this)[Row(row)], count, kept + row * count);
  }
  void recall(const A* kept, int64_t kinds) {
    for (int64_t row = 0; row < kinds; ++row) std::copy_n(kept + row * count, count, (*this)[Row(row)]);
  }

  struct alignas(64) Line {
    A numbers[kLine];
  };
  int64_t count, stride;
  std::vector<Line> lines;
};

}  // namespace ddlnl
