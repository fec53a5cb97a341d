// The Python module dp4tl_fast.kernels._native. Bindings only translate and release the GIL; one register function per topic.
#include "bindings/register.h"

NB_MODULE(_native, m) {
  // What the check at the interpreter's end would report is kept on purpose: in a child after a fork, the parent's loaders
  // (loaders/lifetime.py). Elsewhere nothing is left: a loader that is closed, as all are at exit, holds none of our objects, also
  // where it lies in a cycle of garbage, for which commands do not look at their end (gc.freeze in common/cli.py).
  nanobind::set_leak_warnings(false);
  m.doc() = "Native core of dp4tl_fast. Private: use dp4tl_fast.kernels and dp4tl_fast.loaders.";
  dp4tl::register_isa(m);
  dp4tl::register_counts(m);
  dp4tl::register_loader(m);
  dp4tl::register_jpeg(m);
  dp4tl::register_views(m);
  dp4tl::register_bytes(m);
}
