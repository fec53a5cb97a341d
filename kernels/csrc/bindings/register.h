// One register function per topic; each is defined in bindings/<topic>.cpp and is called once, from module.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace dp4tl {

void register_isa(nanobind::module_& m);     // instruction sets
void register_counts(nanobind::module_& m);  // label_counts, nearest-centroid reduction
void register_loader(nanobind::module_& m);  // the data plane
void register_jpeg(nanobind::module_& m);    // lossless rewriting
void register_views(nanobind::module_& m);   // pieces of a buffer
void register_bytes(nanobind::module_& m);   // checksums, and memory for many payloads

}  // namespace dp4tl
