// dp4tl_fast.kernels._native.jpeg_*: what the converter does to JPEGs.
#include <nanobind/nanobind.h>

#include <string>

#include "bindings/gil.h"
#include "bindings/register.h"
#include "core/error.h"
#include "core/isa/kernels.h"
#include "core/jpeg/check.h"
#include "core/jpeg/header.h"
#include "core/jpeg/index.h"
#include "core/jpeg/shrink.h"
#include "core/jpeg/transcode.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {
namespace {

const uint8_t* bytes_of(const nb::bytes& data) { return static_cast<const uint8_t*>(data.data()); }

// Of a function that makes bytes, without the GIL: the caller's reference keeps its arguments alive.
template <typename F>
nb::bytes made_by(F&& make) {
  std::string result;
  {
    ReleaseGil free;
    result = make();
  }
  return nb::bytes(result.data(), result.size());
}

nb::bytes make_sequential_jpeg(const nb::bytes& data) {
  return made_by([&] { return make_sequential(bytes_of(data), data.size()); });
}

void check(const nb::bytes& data, bool scanned) {
  thread_local JpegChecker checker(kernels_for(best_isa()));
  std::string why;
  {
    ReleaseGil free;
    why = checker.run(bytes_of(data), data.size(), scanned);
  }
  if (!why.empty()) throw Error(why);
}

nb::bytes add_index(nb::bytes data, int pixels) {
  thread_local JpegIndexer indexer(kernels_for(best_isa()));
  JpegIndexer::Result what;
  {
    ReleaseGil free;
    what = indexer.run(bytes_of(data), data.size(), pixels);
  }
  if (what == JpegIndexer::Result::kDamaged) throw Error("its entropy-coded data are damaged");
  if (what != JpegIndexer::Result::kIndexed) return data;
  check(data, true);
  PyObject* whole = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(data.size() + indexer.added_bytes()));
  if (!whole) throw nb::python_error();
  indexer.write(bytes_of(data), data.size(), reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(whole)));
  return nb::steal<nb::bytes>(whole);
}

nb::bytes shrink(const nb::bytes& data, int width, int height, int to_width, int to_height, int quality) {
  return made_by([&] {
    thread_local JpegShrinker shrinker(kernels_for(best_isa()));
    return shrinker.run(bytes_of(data), data.size(), {width, height}, {to_width, to_height}, quality);
  });
}

}  // namespace

void register_jpeg(nb::module_& m) {
  m.def("jpeg_make_sequential", &make_sequential_jpeg, "data"_a,
        "The same coefficients as a baseline JPEG: pixels are identical. RuntimeError: not a JPEG, or damaged.");
  m.def("jpeg_add_index", &add_index, "data"_a, "pixels"_a = 64,
        "The same JPEG with one more segment: an index of places about every `pixels` pixels of a row where the native loader can\n"
        "begin to decode. The very same object if it has such places (an index, restart markers), or if it is no ordinary sequential\n"
        "JPEG. RuntimeError: it is one, but cannot be decoded in full; see `jpeg_check`.");
  m.def("jpeg_check", [](const nb::bytes& data) { check(data, false); }, "data"_a,
        "Pass over all of a JPEG. RuntimeError: libjpeg refuses its headers, or its entropy-coded data are damaged, end early or\n"
        "continue behind the last block.");
  m.def("jpeg_end",
        [](const nb::bytes& data, size_t start) { return end_of_jpeg(bytes_of(data), data.size(), start); }, "data"_a, "start"_a,
        "The position behind the first FFD9 from `start` on, or 0 if there is none. Faster than bytes.find.");
  m.def("jpeg_shrink", &shrink, "data"_a, "width"_a, "height"_a, "to_width"_a, "to_height"_a, "quality"_a,
        "An ordinary JPEG of width x height, resized with antialiasing and encoded as 4:2:0 (or grey). Empty if the JPEG is unusual\n"
        "or damaged: decode it by other means.");
}

}  // namespace dp4tl
