// The schemas of torch.ops.ddlnl. A kernel registers itself in its own file: one file per operator family and device.
// Shapes, meaning and derivatives are written down beside the Python wrapper of each family in ddlnl/ops/.

#include "common.h"

namespace {

int64_t core_version() { return DDLNL_CORE_VERSION; }

}  // namespace

STABLE_TORCH_LIBRARY(ddlnl, m) {
  m.def("core_version() -> int");

  m.def("augment(Tensor images, Tensor table, Tensor codes, Tensor? index, bool linear) -> Tensor");
  m.def("augment_adjoint(Tensor gradient, Tensor table, Tensor codes, Tensor? index, int count) -> Tensor");

  m.def("trajectory_distance_sums(Tensor student, Tensor target, Tensor start) -> Tensor");
  m.def("class_means(Tensor features, Tensor labels, int num_classes) -> (Tensor, Tensor)");
  m.def("class_means_adjoint(Tensor gradient, Tensor labels, Tensor counts) -> Tensor");

  m.def("norm_relu_pool(Tensor x, Tensor? weight, Tensor? bias, float eps, bool norm) -> (Tensor, Tensor)");
  m.def(
      "norm_relu_pool_backward(Tensor gradient, Tensor x, Tensor? weight, Tensor? bias, Tensor statistics, bool norm)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_relu_pool_tangent(Tensor x, Tensor dx, Tensor? weight, Tensor? dweight, Tensor? bias, Tensor? dbias,"
      " float eps, bool norm) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_relu_pool_tangent_backward(Tensor gradient, Tensor dgradient, Tensor x, Tensor dx, Tensor? weight,"
      " Tensor? dweight, Tensor? bias, Tensor? dbias, Tensor statistics, bool norm)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def("softplus_pool(Tensor x, float beta) -> Tensor");
  m.def("softplus_pool_tangent(Tensor x, Tensor dx, float beta) -> Tensor");
  m.def("softplus_pool_backward(Tensor gradient, Tensor x, float beta) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CompositeImplicitAutograd, m) {
  m.impl("core_version", TORCH_BOX(&core_version));
}
