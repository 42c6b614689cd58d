// The schemas of torch.ops.ddlnl. A kernel registers itself in its own file: one file per operator family and device.

#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace {

// CORE_VERSION in ddlnl/_core.py is the same number. Raise both with every change of a schema below: a library built from
// older sources is then refused, where it would otherwise be called with arguments it does not know.
int64_t core_version() { return 1; }

}  // namespace

STABLE_TORCH_LIBRARY(ddlnl, m) {
  m.def("core_version() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(ddlnl, CompositeImplicitAutograd, m) {
  m.impl("core_version", TORCH_BOX(&core_version));
}
