// dp4tl_fast.kernels._native.jpeg_*: what the converter does to JPEGs.
#include <nanobind/nanobind.h>

#include <cstring>

#include "bindings/register.h"
#include "core/error.h"
#include "core/isa/kernels.h"
#include "core/jpeg/index.h"
#include "core/jpeg/shrink.h"
#include "core/jpeg/transcode.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {

void register_jpeg(nb::module_& m) {
  m.def("jpeg_make_sequential",
        [](nb::bytes data) {
          std::string result;
          {
            nb::gil_scoped_release free;  // the caller's reference keeps the bytes alive
            result = make_sequential(static_cast<const uint8_t*>(data.data()), data.size());
          }
          return nb::bytes(result.data(), result.size());
        },
        "data"_a, "The same coefficients as a baseline JPEG: pixels are identical. RuntimeError: not a JPEG, or damaged.");
  m.def("jpeg_add_index",
        [](nb::bytes data, int pixels) -> nb::object {
          thread_local JpegIndexer indexer(kernels_for(best_isa()));
          JpegIndexer::Result what;
          {
            nb::gil_scoped_release free;
            what = indexer.run(static_cast<const uint8_t*>(data.data()), data.size(), pixels);
          }
          if (what == JpegIndexer::Result::kDamaged) throw Error("its entropy-coded data are damaged");
          if (what != JpegIndexer::Result::kIndexed) return data;
          const std::string& segment = indexer.segment();
          PyObject* whole = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(data.size() + segment.size()));
          if (!whole) throw nb::python_error();
          const nb::object result = nb::steal(whole);
          char* to = PyBytes_AS_STRING(whole);
          std::memcpy(to, data.c_str(), indexer.at());
          std::memcpy(to + indexer.at(), segment.data(), segment.size());
          std::memcpy(to + indexer.at() + segment.size(), data.c_str() + indexer.at(), data.size() - indexer.at());
          return result;
        },
        "data"_a, "pixels"_a = 64,
        "The same JPEG with one more segment: an index of places about every `pixels` pixels of a row where the native loader can\n"
        "begin to decode. The very same object if it has such places (an index, restart markers), or if it is no ordinary sequential\n"
        "JPEG. RuntimeError: its entropy-coded data are damaged.");
  m.def("jpeg_end",
        [](nb::bytes data, size_t start) -> size_t {
          const char* bytes = data.c_str();
          for (size_t at = start; at + 1 < data.size(); ++at) {
            const void* found = std::memchr(bytes + at, 0xFF, data.size() - 1 - at);
            if (!found) break;
            at = static_cast<size_t>(static_cast<const char*>(found) - bytes);
            if (static_cast<unsigned char>(bytes[at + 1]) == 0xD9) return at + 2;
          }
          return 0;
        },
        "data"_a, "start"_a, "The position behind the first FFD9 from `start` on, or 0 without one. Faster than bytes.find.");
  m.def("jpeg_shrink",
        [](nb::bytes data, int width, int height, int to_width, int to_height, int quality) {
          std::string result;
          {
            nb::gil_scoped_release free;
            thread_local JpegShrinker shrinker(kernels_for(best_isa()));
            result = shrinker.run(static_cast<const uint8_t*>(data.data()), data.size(), {width, height}, {to_width, to_height},
                                  quality);
          }
          return nb::bytes(result.data(), result.size());
        },
        "data"_a, "width"_a, "height"_a, "to_width"_a, "to_height"_a, "quality"_a,
        "An ordinary JPEG of width x height, resized with antialiasing and encoded as 4:2:0 (or grey). Empty where the JPEG is\n"
        "unusual or damaged: decode it by other means.");
}

}  // namespace dp4tl
