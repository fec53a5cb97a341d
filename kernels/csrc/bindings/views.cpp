// dp4tl_fast.kernels._native.byte_views: many pieces of one buffer at once, for libraries that take a batch as a list.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "bindings/register.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// Not const: DLPack's consumers refuse read-only memory that they would only read.
using View = nb::ndarray<nb::array_api, uint8_t, nb::ndim<1>, nb::device::cpu>;

nb::list byte_views(nb::object buffer, const Numbers& offsets, const Numbers& sizes) {
  const Bytes bytes = nb::cast<Bytes>(buffer);
  const auto length = static_cast<int64_t>(bytes.size());
  const size_t n = offsets.size();
  if (sizes.size() != n) throw nb::value_error("offsets and sizes differ in length");
  nb::list views;
  for (size_t i = 0; i < n; ++i) {
    const int64_t at = offsets(i), size = sizes(i);
    if (at < 0 || size < 0 || size > length || at > length - size) {
      throw nb::index_error(("piece " + std::to_string(i) + " (" + std::to_string(size) + " bytes at " + std::to_string(at) +
                             ") is not inside the buffer of " + std::to_string(length) + " bytes").c_str());
    }
    const size_t shape[1] = {static_cast<size_t>(size)};
    views.append(View(const_cast<uint8_t*>(bytes.data()) + at, 1, shape, buffer));  // each keeps the buffer alive
  }
  return views;
}

}  // namespace

void register_views(nb::module_& m) {
  m.def("byte_views", &byte_views, "buffer"_a, "offsets"_a, "sizes"_a,
        "Pieces of a buffer, nothing copied: a list of uint8 [sizes[i]] that speak DLPack and the buffer protocol. They are only\n"
        "for reading: writing to a piece of a read-only mapping ends the process. IndexError: a piece is not inside the buffer.");
}

}  // namespace dp4tl
