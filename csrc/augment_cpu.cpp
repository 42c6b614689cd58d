// Differentiable siamese augmentation on the CPU. One image at a time runs through its program; what lies between two
// operations stays in two buffers of one image each, so it never leaves the first or second cache.

#include "augment.h"
#include "cpu.h"
#include "lanes.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ddlnl::augment {
namespace {

// Columns and rows of zeros around a plane: both neighbours of any sampling position lie in the image or in these.
constexpr int32_t kPad = 2;

// A sampled pixel reads four others. Their channels lie side by side in a Quad, and so share an address and a weight.
template <typename T>
using Quad = typename VectorOf<T, 4>::type;

// Quads where a processor wants them in memory, of which a vector of bare ones does not take care.
template <typename T>
struct Quads {
  struct alignas(4 * sizeof(T)) Aligned {
    Quad<T> quad;
  };
  explicit Quads(int64_t count) : items(count) {}

  Quad<T>* data() { return &items.data()->quad; }
  void clear() { std::fill(items.begin(), items.end(), Aligned{}); }

  std::vector<Aligned> items;
};

// Everything an image needs on its way, allocated once per run of images.
template <typename T>
struct Scratch {
  explicit Scratch(const Call& call)
      : buffers{std::vector<T>(call.size()), std::vector<T>(call.size())},
        grey(call.plane()),
        right(call.width),
        down(call.width),
        place(call.width),
        padded((call.height + 2 * kPad) * (call.width + 2 * kPad)),
        sums(padded.items.size()),
        line(call.width) {
    for (auto& one : weights) one.resize(call.width);
  }

  std::vector<T> buffers[2], grey, right, down, weights[4];
  std::vector<int32_t> place;
  Quads<T> padded, sums, line;  // padded: what lies around the image stays 0
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

// Where row i of a scaled image is sampled in the padded image: scratch.place, scratch.right and scratch.down.
template <typename T>
DDLNL_INLINE inline void scaled_row(const Call& call, const T* row, int64_t i, Scratch<T>& scratch) {
  T down;
  const int32_t top = lower_neighbour(scaled(row[kScaleRow], i, call.height), call.height, &down) + kPad;
  const int32_t first = top * static_cast<int32_t>(call.width + 2 * kPad) + kPad;
  int32_t* const place = scratch.place.data();
  T* const right = scratch.right.data();
  for (int32_t j = 0; j < static_cast<int32_t>(call.width); ++j) {
    place[j] = first + lower_neighbour(scaled(row[kScaleColumn], j, call.width), call.width, right + j);
  }
  std::fill(scratch.down.begin(), scratch.down.end(), down);
}

// The same of a rotated image.
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

// The weights of those four for every pixel of the row: upper left, upper right, lower left, lower right.
template <typename T>
DDLNL_INLINE inline void weigh_row(const Call& call, Scratch<T>& scratch) {
  const T *const right = scratch.right.data(), *const down = scratch.down.data();
  T *const first = scratch.weights[0].data(), *const second = scratch.weights[1].data();
  T *const third = scratch.weights[2].data(), *const fourth = scratch.weights[3].data();
#pragma omp simd
  for (int64_t j = 0; j < call.width; ++j) {
    first[j] = (1 - down[j]) * (1 - right[j]);
    second[j] = (1 - down[j]) * right[j];
    third[j] = down[j] * (1 - right[j]);
    fourth[j] = down[j] * right[j];
  }
}

// Row i of up to four planes as Quads, and back.
template <int Lanes, typename T>
DDLNL_INLINE inline void pack_row(const T* planes, Quad<T>* quads, const Call& call, int64_t i) {
  const T* const from = planes + i * call.width;
  const auto of = [&](int c, int64_t j) DDLNL_INLINE { return c < Lanes ? from[c * call.plane() + j] : T{0}; };
  for (int64_t j = 0; j < call.width; ++j) quads[j] = Quad<T>{of(0, j), of(1, j), of(2, j), of(3, j)};
}

template <int Lanes, typename T>
DDLNL_INLINE inline void unpack_row(const Quad<T>* quads, T* planes, const Call& call, int64_t i) {
  T* const to = planes + i * call.width;
  for (int64_t j = 0; j < call.width; ++j) {
    for (int c = 0; c < Lanes; ++c) to[c * call.plane() + j] = quads[j][c];
  }
}

// Calls body(planes of `in`, planes of `out`, how many) for every four channels.
template <typename T, typename Body>
DDLNL_INLINE inline void over_quads(const T* in, T* out, const Call& call, const Body& body) {
  for (int64_t c = 0; c < call.channels; c += 4, in += 4 * call.plane(), out += 4 * call.plane()) {
    switch (call.channels - c) {
      case 1: body(in, out, std::integral_constant<int, 1>{}); break;
      case 2: body(in, out, std::integral_constant<int, 2>{}); break;
      case 3: body(in, out, std::integral_constant<int, 3>{}); break;
      default: body(in, out, std::integral_constant<int, 4>{});
    }
  }
}

// Samples every row where locate(i) says.
template <typename T, typename Locate>
DDLNL_INLINE inline void sample(const T* in, T* out, const Call& call, Scratch<T>& scratch, const Locate& locate) {
  const int64_t stride = call.width + 2 * kPad;
  Quad<T> *const padded = scratch.padded.data(), *const line = scratch.line.data();
  over_quads(in, out, call, [&](const T* from, T* to, auto lanes) DDLNL_INLINE {
    constexpr int kLanes = decltype(lanes)::value;
    for (int64_t i = 0; i < call.height; ++i) pack_row<kLanes>(from, padded + (i + kPad) * stride + kPad, call, i);
    for (int64_t i = 0; i < call.height; ++i) {
      locate(i);
      weigh_row(call, scratch);
      for (int64_t j = 0; j < call.width; ++j) {
        const Quad<T>* const at = padded + scratch.place[j];
        line[j] = (scratch.weights[0][j] * at[0] + scratch.weights[1][j] * at[1]) +
                  (scratch.weights[2][j] * at[stride] + scratch.weights[3][j] * at[stride + 1]);
      }
      unpack_row<kLanes>(line, to, call, i);
    }
  });
}

// The transpose of `sample`.
template <typename T, typename Locate>
DDLNL_INLINE inline void spread(const T* in, T* out, const Call& call, Scratch<T>& scratch, const Locate& locate) {
  const int64_t stride = call.width + 2 * kPad, half = call.width / 2;
  Quad<T> *const sums = scratch.sums.data(), *const line = scratch.line.data();
  const auto add = [&](int64_t j) DDLNL_INLINE {
    Quad<T>* const at = sums + scratch.place[j];
    at[0] += scratch.weights[0][j] * line[j];
    at[1] += scratch.weights[1][j] * line[j];
    at[stride] += scratch.weights[2][j] * line[j];
    at[stride + 1] += scratch.weights[3][j] * line[j];
  };
  over_quads(in, out, call, [&](const T* from, T* to, auto lanes) DDLNL_INLINE {
    constexpr int kLanes = decltype(lanes)::value;
    scratch.sums.clear();
    for (int64_t i = 0; i < call.height; ++i) {
      pack_row<kLanes>(from, line, call, i);
      locate(i);
      weigh_row(call, scratch);
      for (int64_t j = 0; j < half; ++j) {  // a pixel waits for the sums of its neighbour, so take two far apart
        add(j);
        add(j + half);
      }
      if (call.width % 2) add(call.width - 1);
    }
    for (int64_t i = 0; i < call.height; ++i) unpack_row<kLanes>(sums + (i + kPad) * stride + kPad, to, call, i);
  });
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
    case kRotate: {
      const auto locate = [&](int64_t i) DDLNL_INLINE {
        code == kScale ? scaled_row(call, row, i, scratch) : rotated_row(call, row, i, scratch);
      };
      return adjoint ? spread(in, out, call, scratch, locate) : sample(in, out, call, scratch, locate);
    }
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

// Where numbers are added up that become the elements `to`: in place, where those are as wide.
template <typename T>
T* sum_of(T* to, std::vector<T>&) {
  return to;
}
template <typename E, typename T>
T* sum_of(E*, std::vector<T>& total) {
  return total.data();
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
        T* const sum = sum_of(to + t * size, total);
        if (first == last) std::fill_n(sum, size, T{0});
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
          run_program(in, m == first ? sum : part.data(), call, programs + n / call.code_run * call.stages,
                      rows + n / call.table_run * kColumns, Part::kAdjoint, scratch);
          if (m > first) {
            for (int64_t p = 0; p < size; ++p) sum[p] += part[p];
          }
        }
        if constexpr (!std::is_same_v<E, T>) std::copy_n(sum, size, to + t * size);
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
