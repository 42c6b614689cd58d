// What the CPU and the CUDA kernels of the augmentation share: numbers, checks, and where an operation reads an image.
// ddlnl/ops/reference/_augment.py defines both and the formulas.
#pragma once

#include "common.h"

#include <cmath>

#ifdef __CUDACC__
#define DDLNL_EVERYWHERE __host__ __device__ __forceinline__
#else
#define DDLNL_EVERYWHERE __attribute__((always_inline)) inline
#endif

namespace ddlnl::augment {

enum Code : int32_t { kNothing, kColor, kCrop, kCutout, kFlip, kScale, kRotate, kCodes };

enum Column : int32_t {
  kFlipped,
  kOffset,
  kSaturation,
  kContrast,
  kRowShift,
  kColumnShift,
  kScaleRow,
  kScaleColumn,
  kCosine,
  kSine,
  kCutRow,
  kCutColumn,
  kColumns
};

// One call: `count` images are made from (or, by the adjoint, added up into) `sources` images.
struct Call {
  int64_t sources, count, channels, height, width, stages;
  int64_t table_run, code_run;  // consecutive images that share a row of the table, of the codes

  DDLNL_EVERYWHERE int64_t plane() const { return height * width; }
  DDLNL_EVERYWHERE int64_t size() const { return channels * plane(); }
};

// What is computed of the program: all of it, its linear part, or the transpose of that.
enum class Part { kAffine, kLinear, kAdjoint };

// The value in [low, high], and low for NaN.
template <typename T>
DDLNL_EVERYWHERE T clamped(T value, T low, T high) {
  value = value > low ? value : low;
  return value < high ? value : high;
}

// The lower neighbour of a sampling position on an axis, from -2 to side, and the weight of the upper one. A position
// none of whose neighbours is inside, or NaN, is moved to an end of that range, where that is still so.
template <typename T>
DDLNL_EVERYWHERE int32_t lower_neighbour(T position, int64_t side, T* upper) {
  position = clamped(position, T{-2}, static_cast<T>(side));
  const T lower = std::floor(position);
  *upper = position - lower;
  return static_cast<int32_t>(lower);
}

// Where pixel k of a scaled axis is sampled.
template <typename T>
DDLNL_EVERYWHERE T scaled(T scale, int64_t k, int64_t side) {
  const T middle = static_cast<T>(side - 1) / 2;
  return scale * (static_cast<T>(k) - middle) + middle;
}

// Row v and column u where pixel (i, j) of a rotated image is sampled.
template <typename T>
DDLNL_EVERYWHERE void rotated(T cosine, T sine, int64_t i, int32_t j, const Call& call, T* v, T* u) {
  const T middle_row = static_cast<T>(call.height - 1) / 2, middle_column = static_cast<T>(call.width - 1) / 2;
  const T row = static_cast<T>(i) - middle_row, column = static_cast<T>(j) - middle_column;
  *v = sine * column + cosine * row + middle_row;
  *u = cosine * column - sine * row + middle_column;
}

// Whole pixels of a shift; one that leaves nothing of the image, or is NaN, is `side`.
template <typename T>
DDLNL_EVERYWHERE int64_t shift_of(T value, int64_t side) {
  const T whole = std::rint(value);
  return std::abs(whole) < static_cast<T>(side) ? static_cast<int64_t>(whole) : side;
}

struct Span {
  int64_t first, last;
  DDLNL_EVERYWHERE bool empty() const { return last <= first; }
};

template <typename T>
DDLNL_EVERYWHERE int64_t first_pixel(T edge, int64_t side) {
  return static_cast<int64_t>(clamped(std::ceil(edge), T{0}, static_cast<T>(side)));
}

// The pixels of an axis that the box of half its length about `centre` covers.
template <typename T>
DDLNL_EVERYWHERE Span box_of(T centre, int64_t side) {
  const int64_t box = (side + 1) / 2;
  const T first = centre - static_cast<T>(box / 2);
  return {first_pixel(first, side), first_pixel(first + static_cast<T>(box), side)};
}

inline int64_t run_of(int64_t count, int64_t rows, const char* name) {
  DDLNL_CHECK(rows > 0 ? count % rows == 0 : count == 0, "The ", rows, " rows of the ", name, " do not divide the ",
              count, " images into equal runs.");
  return rows > 0 && count > 0 ? count / rows : 1;
}

// `images` are the images of the operator, or the gradients of its adjoint; `sources` is the number of images before
// `index` picked from them, and -1 stands for the size of `images`.
inline Call checked(const Tensor& images, const Tensor& table, const Tensor& codes, const std::optional<Tensor>& index,
                    bool adjoint, int64_t sources) {
  DDLNL_CHECK(images.dim() == 4 && images.is_contiguous(), "The augmented images are a contiguous (N, C, H, W) tensor.");
  DDLNL_CHECK(table.dim() == 2 && table.size(1) == kColumns && table.is_contiguous(),
              "The parameter table is a contiguous (Q, ", static_cast<int>(kColumns), ") tensor.");
  const bool wide = images.scalar_type() == ScalarType::Double;
  DDLNL_CHECK(table.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
              "The parameter table is float64 for float64 images, else float32.");
  DDLNL_CHECK((codes.dim() == 1 || codes.dim() == 2) && codes.scalar_type() == ScalarType::Int && codes.is_contiguous(),
              "The codes are a contiguous int32 (S,) or (R, S) tensor.");
  DDLNL_CHECK(!index || (index->dim() == 1 && index->scalar_type() == ScalarType::Long && index->is_contiguous()),
              "The index is a contiguous int64 (N,) tensor.");
  DDLNL_CHECK(same_device(table, images) && same_device(codes, images) && (!index || same_device(*index, images)),
              "Images, table, codes and index are on different devices.");
  Call call{};
  call.count = index ? index->size(0) : images.size(0);
  call.sources = sources < 0 ? images.size(0) : sources;
  DDLNL_CHECK(!adjoint || images.size(0) == call.count, "The index has ", call.count, " entries for ", images.size(0),
              " gradients.");
  DDLNL_CHECK(index || call.sources == call.count, "Without an index, the adjoint makes ", call.count, " images, not ",
              call.sources, ".");
  call.channels = images.size(1);
  call.height = images.size(2);
  call.width = images.size(3);
  constexpr int64_t most = int64_t{1} << 31;
  DDLNL_CHECK(call.height < most && call.width < most && (call.height + 4) * (call.width + 4) < most,
              "The augmented images are too large.");
  call.stages = codes.size(codes.dim() - 1);
  call.table_run = run_of(call.count, table.size(0), "table");
  call.code_run = run_of(call.count, codes.dim() == 2 ? codes.size(0) : 1, "codes");
  return call;
}

}  // namespace ddlnl::augment
