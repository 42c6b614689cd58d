// The arguments of the matching losses, checked in one place for both devices.
#pragma once

#include <vector>

#include "common.h"

namespace ddlnl {

using torch::headeronly::IntHeaderOnlyArrayRef;

inline Tensor empty_like_of(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype);
}

// (M, P) vectors, or (P,) as M = 1.
struct Vectors {
  int64_t count, length;

  Vectors(const Tensor& student, const Tensor& target, const Tensor& start) {
    DDLNL_CHECK(student.dim() == 1 || student.dim() == 2, "trajectory_distance_sums takes (P,) or (M, P) vectors.");
    for (const Tensor* other : {&target, &start}) {
      DDLNL_CHECK(same_sizes(student, *other) && student.scalar_type() == other->scalar_type() &&
                      same_device(student, *other),
                  "trajectory_distance_sums takes three tensors of one shape, dtype and device.");
    }
    count = student.dim() == 2 ? student.size(0) : 1;
    length = student.size(student.dim() - 1);
  }

  // The (2,) or (M, 2) result.
  Tensor sums(const Tensor& student) const {
    std::vector<int64_t> sizes{2};
    if (student.dim() == 2) sizes.insert(sizes.begin(), count);
    return empty_like_of(student, sizes, ScalarType::Double);
  }
};

// (rows, columns) values with a label per row.
struct Labelled {
  int64_t rows, columns, classes;

  static Labelled features(const Tensor& features, const Tensor& labels, int64_t classes) {
    DDLNL_CHECK(classes >= 1, "class_means needs one class or more, not ", classes, ".");
    DDLNL_CHECK(features.dim() == 2, "class_means takes features (N, D).");
    return {checked_rows(features, labels, "class_means"), features.size(1), classes};
  }

  static Labelled adjoint(const Tensor& gradient, const Tensor& labels, const Tensor& counts) {
    DDLNL_CHECK(gradient.dim() == 2 && counts.dim() == 1 && counts.size(0) == gradient.size(0),
                "class_means_adjoint takes a gradient (K, D) and counts (K,).");
    DDLNL_CHECK(counts.scalar_type() == computed_type(gradient) && same_device(counts, gradient),
                "class_means_adjoint takes counts in the type it computes in, beside the gradient.");
    DDLNL_CHECK(same_device(labels, gradient), "class_means_adjoint takes tensors of one device.");
    check_labels(labels, "class_means_adjoint");
    return {labels.size(0), gradient.size(1), gradient.size(0)};
  }

 private:
  static void check_labels(const Tensor& labels, const char* name) {
    DDLNL_CHECK(labels.dim() == 1 && labels.scalar_type() == ScalarType::Long, name, " takes int64 labels (N,).");
  }

  static int64_t checked_rows(const Tensor& features, const Tensor& labels, const char* name) {
    check_labels(labels, name);
    DDLNL_CHECK(labels.size(0) == features.size(0) && same_device(labels, features), name,
                " takes one label per row, on the same device; it got ", labels.size(0), " labels for ",
                features.size(0), " rows.");
    return labels.size(0);
  }
};

}  // namespace ddlnl
