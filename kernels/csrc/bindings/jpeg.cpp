// dp4tl_fast.kernels._native.jpeg_*: lossless rewriting, for the converter.
#include <nanobind/nanobind.h>

#include "bindings/register.h"
#include "core/jpeg_transcode.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {

void register_jpeg(nb::module_& m) {
  m.def("jpeg_add_entry_points",
        [](nb::bytes data, int interval) {
          std::string result;
          {
            nb::gil_scoped_release free;  // the caller's reference keeps the bytes alive
            result = add_entry_points(static_cast<const uint8_t*>(data.data()), data.size(), interval);
          }
          return nb::bytes(result.data(), result.size());
        },
        "data"_a, "interval"_a = 4,
        "The same JPEG as baseline data with a restart marker every `interval` MCUs and optimised Huffman tables: pixels are\n"
        "identical, and the native loader decodes only the intervals that a crop touches. RuntimeError: not a JPEG, or damaged.");
}

}  // namespace dp4tl
