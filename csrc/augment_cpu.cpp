// Differentiable siamese augmentation on the CPU. One image at a time runs through its program; what lies between two
// operations stays in two buffers of one image each, so it never leaves the first or second cache.

#include "augment.h"
#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ddlnl::augment {
namespace {

// Columns and rows of zeros around a plane: both neighbours of any sampling position lie in the image or in these.
constexpr int32_t kPad = 2;

// Everything an image needs on its way, allocated once per run of images.
template <typename T>
struct Scratch {
  explicit Scratch(const Call& call)
      : buffers{std::vector<T>(call.size()), std::vector<T>(call.size())},
        grey(call.plane()),
        padded(call.channels * (call.height + 2 * kPad) * (call.width + 2 * kPad)),
        line(call.width + 2 * kPad),
        zeros(call.width),
        sums(call.width),
        right(call.width),
        down(call.width),
        place(call.width) {}

  std::vector<T> buffers[2], grey, padded, line, zeros, sums, right, down;
  std::vector<int32_t> place;
  std::vector<T> weights;         // of scale_adjoint: (depth, width)
  std::vector<int32_t> outputs;   // of scale_adjoint: (depth, width)
  std::vector<int32_t> reaching;  // of scale_adjoint: (width,)
};

template <typename T>
DDLNL_INLINE inline void color(const T* in, T* out, const Call& call, const T* row, bool affine, Scratch<T>& scratch) {
  const int64_t plane = call.plane();
  const T saturation = row[kSaturation], contrast = row[kContrast];
  T* const grey = scratch.grey.data();
  const T share = T{1} / static_cast<T>(call.channels);
  T total = 0;
  for (int64_t c = 0; c < call.channels; ++c) {
    const T* const from = in + c * plane;
    if (c == 0) {
      for (int64_t p = 0; p < plane; ++p) grey[p] = from[p] * share;
    } else {
      for (int64_t p = 0; p < plane; ++p) grey[p] += from[p] * share;
    }
  }
#pragma omp simd reduction(+ : total)
  for (int64_t p = 0; p < plane; ++p) total += grey[p];
  const T mean = total / static_cast<T>(plane);
  const T base = (1 - contrast) * mean + (affine ? row[kOffset] : T{0});
  const T from_grey = contrast * (1 - saturation), from_pixel = contrast * saturation;
  for (int64_t p = 0; p < plane; ++p) grey[p] = from_grey * grey[p] + base;
  for (int64_t c = 0; c < call.channels; ++c) {
    const T* const from = in + c * plane;
    T* const to = out + c * plane;
    for (int64_t p = 0; p < plane; ++p) to[p] = from_pixel * from[p] + grey[p];
  }
}

template <typename T>
DDLNL_INLINE inline void crop(const T* in, T* out, const Call& call, int64_t row_shift, int64_t column_shift) {
  const int64_t first = std::max<int64_t>(0, -column_shift);
  const int64_t last = std::max(first, std::min(call.width, call.width - column_shift));
  for (int64_t line = 0; line < call.channels * call.height; ++line) {
    const int64_t source = line % call.height + row_shift;
    T* const to = out + line * call.width;
    if (source < 0 || source >= call.height || first >= call.width) {
      std::fill_n(to, call.width, T{0});
      continue;
    }
    const T* const from = in + (line + row_shift) * call.width + column_shift;
    std::fill(to, to + first, T{0});
    std::copy(from + first, from + last, to + first);
    std::fill(to + last, to + call.width, T{0});
  }
}

template <typename T>
DDLNL_INLINE inline void cutout(const T* in, T* out, const Call& call, const T* row) {
  const Span rows = box_of(row[kCutRow], call.height), columns = box_of(row[kCutColumn], call.width);
  std::copy_n(in, call.size(), out);
  if (columns.empty()) return;
  for (int64_t c = 0; c < call.channels; ++c) {
    for (int64_t i = rows.first; i < rows.last; ++i) {
      T* const to = out + c * call.plane() + i * call.width;
      std::fill(to + columns.first, to + columns.last, T{0});
    }
  }
}

template <typename T>
DDLNL_INLINE inline void flip(const T* in, T* out, const Call& call) {
  for (int64_t line = 0; line < call.channels * call.height; ++line) {
    const T* const from = in + line * call.width;
    T* const to = out + line * call.width;
    for (int64_t j = 0; j < call.width; ++j) to[j] = from[call.width - 1 - j];
  }
}

// Where the columns of a scaled image are sampled: scratch.place and scratch.right.
template <typename T>
DDLNL_INLINE inline void scaled_columns(const Call& call, const T* row, Scratch<T>& scratch) {
  const T scale = row[kScaleColumn];
  int32_t* const place = scratch.place.data();
  T* const right = scratch.right.data();
  for (int32_t j = 0; j < static_cast<int32_t>(call.width); ++j) {
    place[j] = lower_neighbour(scaled(scale, j, call.width), call.width, right + j) + kPad;
  }
}

template <typename T>
DDLNL_INLINE inline int64_t scaled_row(const Call& call, const T* row, int64_t i, T* down) {
  return lower_neighbour(scaled(row[kScaleRow], i, call.height), call.height, down);
}

// Scaling is separable: two rows become one, and that one is sampled.
template <typename T>
DDLNL_INLINE inline void scale(const T* in, T* out, const Call& call, const T* row, Scratch<T>& scratch) {
  const int64_t width = call.width;
  scaled_columns(call, row, scratch);
  const int32_t* const place = scratch.place.data();
  const T* const right = scratch.right.data();
  T* const line = scratch.line.data();
  std::fill(scratch.line.begin(), scratch.line.end(), T{0});
  for (int64_t i = 0; i < call.height; ++i) {
    T down;
    const int64_t top = scaled_row(call, row, i, &down);
    for (int64_t c = 0; c < call.channels; ++c) {
      const auto line_at = [&](int64_t at) {
        return at >= 0 && at < call.height ? in + c * call.plane() + at * width : scratch.zeros.data();
      };
      const T *const upper = line_at(top), *const lower = line_at(top + 1);
      for (int64_t j = 0; j < width; ++j) line[kPad + j] = (1 - down) * upper[j] + down * lower[j];
      T* const to = out + c * call.plane() + i * width;
      for (int64_t j = 0; j < width; ++j) {
        to[j] = (1 - right[j]) * line[place[j]] + right[j] * line[place[j] + 1];
      }
    }
  }
}

// For every input column the output columns that read it, with their weights: `depth` of them in scratch.outputs and
// scratch.weights, filled up with weight 0 of an output column that is always 0. Returns the depth.
template <typename T>
DDLNL_INLINE inline int64_t readers_of_columns(const Call& call, const T* row, Scratch<T>& scratch) {
  const int64_t width = call.width;
  scaled_columns(call, row, scratch);
  std::vector<int32_t>& reaching = scratch.reaching;
  const auto for_pairs = [&](const auto& visit) {
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t side = 0; side < 2; ++side) {
        const int64_t column = scratch.place[j] - kPad + side;
        if (column >= 0 && column < width) visit(j, column, side ? scratch.right[j] : 1 - scratch.right[j]);
      }
    }
  };
  reaching.assign(width, 0);
  for_pairs([&](int64_t, int64_t column, T) { ++reaching[column]; });
  const int64_t depth = width > 0 ? *std::max_element(reaching.begin(), reaching.end()) : 0;
  scratch.weights.assign(depth * width, T{0});
  scratch.outputs.assign(depth * width, static_cast<int32_t>(width));
  reaching.assign(width, 0);
  for_pairs([&](int64_t j, int64_t column, T weight) {
    const int64_t slot = reaching[column]++ * width + column;
    scratch.outputs[slot] = static_cast<int32_t>(j);
    scratch.weights[slot] = weight;
  });
  return depth;
}

template <typename T>
DDLNL_INLINE inline void scale_adjoint(const T* in, T* out, const Call& call, const T* row, Scratch<T>& scratch) {
  const int64_t width = call.width, depth = readers_of_columns(call, row, scratch);
  T *const line = scratch.line.data(), *const sums = scratch.sums.data();
  line[width] = 0;
  std::fill_n(out, call.size(), T{0});
  for (int64_t i = 0; i < call.height; ++i) {
    T down;
    const int64_t top = scaled_row(call, row, i, &down);
    for (int64_t c = 0; c < call.channels; ++c) {
      std::copy_n(in + c * call.plane() + i * width, width, line);
      std::fill_n(sums, width, T{0});
      for (int64_t k = 0; k < depth; ++k) {
        const T* const weights = scratch.weights.data() + k * width;
        const int32_t* const outputs = scratch.outputs.data() + k * width;
        for (int64_t j = 0; j < width; ++j) sums[j] += weights[j] * line[outputs[j]];
      }
      for (int64_t side = 0; side < 2; ++side) {
        const int64_t at = top + side;
        if (at < 0 || at >= call.height) continue;
        const T weight = side ? down : 1 - down;
        T* const to = out + c * call.plane() + at * width;
        for (int64_t j = 0; j < width; ++j) to[j] += weight * sums[j];
      }
    }
  }
}

// Where row i of a rotated image is sampled in the padded planes: scratch.place, scratch.right and scratch.down.
template <typename T>
DDLNL_INLINE inline void rotated_row(const Call& call, const T* row, int64_t i, Scratch<T>& scratch) {
  const T cosine = row[kCosine], sine = row[kSine];
  const int32_t stride = static_cast<int32_t>(call.width + 2 * kPad);
  int32_t* const place = scratch.place.data();
  T *const right = scratch.right.data(), *const down = scratch.down.data();
  for (int32_t j = 0; j < static_cast<int32_t>(call.width); ++j) {
    T v, u;
    rotated(cosine, sine, i, j, call, &v, &u);
    const int32_t top = lower_neighbour(v, call.height, down + j) + kPad;
    place[j] = top * stride + lower_neighbour(u, call.width, right + j) + kPad;
  }
}

template <typename T>
DDLNL_INLINE inline void rotate(const T* in, T* out, const Call& call, const T* row, Scratch<T>& scratch) {
  const int64_t width = call.width, stride = width + 2 * kPad, padded = stride * (call.height + 2 * kPad);
  for (int64_t c = 0; c < call.channels; ++c) {  // the border keeps the zeros it was made with
    for (int64_t i = 0; i < call.height; ++i) {
      std::copy_n(in + c * call.plane() + i * width, width,
                  scratch.padded.data() + c * padded + (i + kPad) * stride + kPad);
    }
  }
  const int32_t* const place = scratch.place.data();
  const T *const right = scratch.right.data(), *const down = scratch.down.data();
  for (int64_t i = 0; i < call.height; ++i) {
    rotated_row(call, row, i, scratch);
    for (int64_t c = 0; c < call.channels; ++c) {
      const T *const upper = scratch.padded.data() + c * padded, *const lower = upper + stride;
      T* const to = out + c * call.plane() + i * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const int32_t at = place[j];
        const T above = (1 - right[j]) * upper[at] + right[j] * upper[at + 1];
        const T below = (1 - right[j]) * lower[at] + right[j] * lower[at + 1];
        to[j] = (1 - down[j]) * above + down[j] * below;
      }
    }
  }
}

template <typename T>
DDLNL_INLINE inline void rotate_adjoint(const T* in, T* out, const Call& call, const T* row, Scratch<T>& scratch) {
  const int64_t width = call.width, stride = width + 2 * kPad, padded = stride * (call.height + 2 * kPad);
  std::fill(scratch.padded.begin(), scratch.padded.end(), T{0});
  for (int64_t i = 0; i < call.height; ++i) {
    rotated_row(call, row, i, scratch);
    for (int64_t j = 0; j < width; ++j) {
      const T right = scratch.right[j], down = scratch.down[j];
      T* at = scratch.padded.data() + scratch.place[j];
      const T* from = in + i * width + j;
      for (int64_t c = 0; c < call.channels; ++c, at += padded, from += call.plane()) {
        const T above = (1 - down) * *from, below = down * *from;
        at[0] += (1 - right) * above;
        at[1] += right * above;
        at[stride] += (1 - right) * below;
        at[stride + 1] += right * below;
      }
    }
  }
  for (int64_t c = 0; c < call.channels; ++c) {
    for (int64_t i = 0; i < call.height; ++i) {
      std::copy_n(scratch.padded.data() + c * padded + (i + kPad) * stride + kPad, width,
                  out + c * call.plane() + i * width);
    }
  }
}

template <typename T>
DDLNL_INLINE inline void operation(int32_t code, Part part, const T* in, T* out, const Call& call, const T* row,
                                   Scratch<T>& scratch) {
  const bool adjoint = part == Part::kAdjoint;
  switch (code) {
    case kColor:
      return color(in, out, call, row, part == Part::kAffine, scratch);
    case kCrop: {
      const int64_t sign = adjoint ? -1 : 1;
      return crop(in, out, call, sign * shift_of(row[kRowShift], call.height),
                  sign * shift_of(row[kColumnShift], call.width));
    }
    case kCutout:
      return cutout(in, out, call, row);
    case kFlip:
      return flip(in, out, call);
    case kScale:
      return adjoint ? scale_adjoint(in, out, call, row, scratch) : scale(in, out, call, row, scratch);
    case kRotate:
      return adjoint ? rotate_adjoint(in, out, call, row, scratch) : rotate(in, out, call, row, scratch);
    default:
      return;
  }
}

// Whether the operation copies every image bit by bit.
template <typename T>
bool idle(int32_t code, const Call& call, const T* row) {
  switch (code) {
    case kNothing:
      return true;
    case kCrop:
      return shift_of(row[kRowShift], call.height) == 0 && shift_of(row[kColumnShift], call.width) == 0;
    case kCutout:
      return box_of(row[kCutRow], call.height).empty() || box_of(row[kCutColumn], call.width).empty();
    case kFlip:
      return !(row[kFlipped] > T(0.5));
    default:
      return false;
  }
}

// Runs one image through a program, or a gradient backwards through it.
template <typename T>
void run_program(const T* in, T* out, const Call& call, const int32_t* codes, const T* row, Part part,
                 Scratch<T>& scratch) {
  int64_t left = 0;
  for (int64_t s = 0; s < call.stages; ++s) left += !idle(codes[s], call, row);
  if (left == 0) std::copy_n(in, call.size(), out);
  for (int64_t s = 0; s < call.stages; ++s) {
    const int32_t code = codes[part == Part::kAdjoint ? call.stages - 1 - s : s];
    if (idle(code, call, row)) continue;
    --left;
    T* const to = left == 0 ? out : scratch.buffers[left % 2].data();
    with_widest_vectors([&](auto) DDLNL_INLINE { operation(code, part, in, to, call, row, scratch); });
    in = to;
  }
}

void check_values(const Call& call, const Tensor& codes, const std::optional<Tensor>& index) {
  const int32_t* const code = codes.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < codes.numel(); ++s) {
    DDLNL_CHECK(code[s] >= 0 && code[s] < kCodes, "The operation code ", code[s], " is unknown; codes run from 0 to ",
                kCodes - 1, ".");
  }
  if (!index) return;
  const int64_t* const source = index->const_data_ptr<int64_t>();
  for (int64_t n = 0; n < call.count; ++n) {
    DDLNL_CHECK(source[n] >= 0 && source[n] < call.sources, "The index ", source[n], " is outside the ", call.sources,
                " images.");
  }
}

// Few images are not worth a second thread.
int64_t grain(const Call& call) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, call.size())); }

Tensor augment_cpu(const Tensor& images, const Tensor& table, const Tensor& codes, const std::optional<Tensor>& index,
                   bool linear) {
  const Call call = checked(images, table, codes, index, false, -1);
  check_values(call, codes, index);
  Tensor result = torch::stable::new_empty(images, {call.count, call.channels, call.height, call.width});
  if (call.count * call.size() == 0) return result;
  for_element_type(images, "augment", [&](auto element) {
    using E = decltype(element);
    using T = typename Computed<E>::type;
    const E* const from = images.const_data_ptr<E>();
    E* const to = result.mutable_data_ptr<E>();
    const T* const rows = table.const_data_ptr<T>();
    const int32_t* const programs = codes.const_data_ptr<int32_t>();
    const int64_t* const source = index ? index->const_data_ptr<int64_t>() : nullptr;
    const Part part = linear ? Part::kLinear : Part::kAffine;
    torch::stable::parallel_for(0, call.count, grain(call), [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(call);
      std::vector<T> wide(std::is_same_v<E, T> ? 0 : 2 * call.size());
      for (int64_t n = begin; n < end; ++n) {
        const E* const image = from + (source ? source[n] : n) * call.size();
        const T* const row = rows + n / call.table_run * kColumns;
        const int32_t* const program = programs + n / call.code_run * call.stages;
        if constexpr (std::is_same_v<E, T>) {
          run_program(image, to + n * call.size(), call, program, row, part, scratch);
        } else {
          std::copy_n(image, call.size(), wide.data());
          run_program(wide.data(), wide.data() + call.size(), call, program, row, part, scratch);
          std::copy_n(wide.data() + call.size(), call.size(), to + n * call.size());
        }
      }
    });
  });
  return result;
}

// The results that were made from each source image, in their order.
struct Members {
  Members(const Call& call, const std::optional<Tensor>& index) : first(call.sources + 1), results(call.count) {
    const int64_t* const source = index ? index->const_data_ptr<int64_t>() : nullptr;
    const auto source_of = [&](int64_t n) { return source ? source[n] : n; };
    for (int64_t n = 0; n < call.count; ++n) ++first[source_of(n) + 1];
    for (int64_t t = 0; t < call.sources; ++t) first[t + 1] += first[t];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t n = 0; n < call.count; ++n) results[next[source_of(n)]++] = n;
  }

  std::vector<int64_t> first, results;
};

Tensor augment_adjoint_cpu(const Tensor& gradient, const Tensor& table, const Tensor& codes,
                           const std::optional<Tensor>& index, int64_t count) {
  DDLNL_CHECK(count >= 0, "The adjoint of augment makes ", count, " images; it cannot make fewer than none.");
  const Call call = checked(gradient, table, codes, index, true, count);
  check_values(call, codes, index);
  Tensor result = torch::stable::new_empty(gradient, {count, call.channels, call.height, call.width});
  if (count * call.size() == 0) return result;
  const Members members(call, index);
  for_element_type(gradient, "augment_adjoint", [&](auto element) {
    using E = decltype(element);
    using T = typename Computed<E>::type;
    const E* const from = gradient.const_data_ptr<E>();
    E* const to = result.mutable_data_ptr<E>();
    const T* const rows = table.const_data_ptr<T>();
    const int32_t* const programs = codes.const_data_ptr<int32_t>();
    torch::stable::parallel_for(0, count, grain(call), [&](int64_t begin, int64_t end) {
      const int64_t size = call.size();
      Scratch<T> scratch(call);
      std::vector<T> wide(std::is_same_v<E, T> ? 0 : size), part(size), total(size);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t first = members.first[t], last = members.first[t + 1];
        if (first == last) std::fill(total.begin(), total.end(), T{0});
        for (int64_t m = first; m < last; ++m) {
          const int64_t n = members.results[m];
          const E* const image = from + n * size;
          const T* in;
          if constexpr (std::is_same_v<E, T>) {
            in = image;
          } else {
            std::copy_n(image, size, wide.data());
            in = wide.data();
          }
          run_program(in, m == first ? total.data() : part.data(), call, programs + n / call.code_run * call.stages,
                      rows + n / call.table_run * kColumns, Part::kAdjoint, scratch);
          if (m > first) {
            for (int64_t p = 0; p < size; ++p) total[p] += part[p];
          }
        }
        std::copy_n(total.data(), size, to + t * size);
      }
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CPU, m) {
  m.impl("augment", TORCH_BOX(&augment_cpu));
  m.impl("augment_adjoint", TORCH_BOX(&augment_adjoint_cpu));
}

}  // namespace
}  // namespace ddlnl::augment
