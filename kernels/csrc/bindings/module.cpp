// The Python module dp4tl_fast.kernels._native. Bindings only translate and release the GIL; one register function per topic.
#include "bindings/register.h"

NB_MODULE(_native, m) {
  // The interpreter frees nothing that a cycle of garbage holds at its end, which says nothing about our reference counts.
  nanobind::set_leak_warnings(false);
  m.doc() = "Native core of dp4tl_fast. Private: use dp4tl_fast.kernels and dp4tl_fast.loaders.";
  dp4tl::register_isa(m);
  dp4tl::register_counts(m);
  dp4tl::register_loader(m);
  dp4tl::register_jpeg(m);
  dp4tl::register_views(m);
}
