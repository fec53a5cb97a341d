// dp4tl_fast.kernels._native.jpeg_*: what the converter does to JPEGs.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

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

// Of each payload: the same object, one with an index, or a string that says what is wrong.
nb::list checked(const std::vector<nb::bytes>& payloads, const std::vector<int>& pixels, bool all) {
  if (payloads.size() != pixels.size()) throw nb::value_error("`pixels` must have a number for each of `payloads`");
  thread_local JpegChecker checker(kernels_for(best_isa()));
  std::vector<IndexTask> tasks(payloads.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].data = bytes_of(payloads[i]), tasks[i].size = payloads[i].size(), tasks[i].pixels = pixels[i];
  }
  std::vector<std::string> why;
  {
    ReleaseGil free;
    why = checker.run(tasks, all);
  }
  nb::list results;
  std::vector<uint8_t*> to(tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (!why[i].empty()) {
      results.append(why[i]);
    } else if (tasks[i].result != IndexTask::Result::kIndexed) {
      results.append(payloads[i]);
    } else {
      PyObject* whole = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(tasks[i].size + tasks[i].segment.size()));
      if (!whole) throw nb::python_error();
      to[i] = reinterpret_cast<uint8_t*>(PyBytes_AsString(whole));
      results.append(nb::steal<nb::bytes>(whole));
    }
  }
  ReleaseGil free;  // nobody else knows the new objects yet
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (to[i]) tasks[i].write(to[i]);
  }
  return results;
}

nb::bytes checked_one(const nb::bytes& data, int pixels, bool all) {
  const nb::list results = checked({data}, {pixels}, all);
  if (nb::isinstance<nb::str>(results[0])) throw Error(nb::cast<std::string>(results[0]));
  return nb::cast<nb::bytes>(results[0]);
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
  m.def("jpeg_checked", &checked, "payloads"_a, "pixels"_a, "all"_a = true,
        nb::sig("def jpeg_checked(payloads: Sequence[bytes], pixels: Sequence[int], all: bool = True) -> list[bytes | str]"),
        "Pass over all of several JPEGs, which takes less time than one by one. Of each: a string that says what is wrong, if libjpeg\n"
        "refuses its headers, or its entropy-coded data are damaged, end early or continue behind the last block. Else the same JPEG\n"
        "with one more segment: an index of places about every `pixels[i]` pixels of a row where the native loader can begin to\n"
        "decode. The very same object if none is wanted (0), if it has such places (an index, restart markers), or if it is no\n"
        "ordinary sequential JPEG. all=False: what is none is not checked.");
  m.def("jpeg_add_index", [](const nb::bytes& data, int pixels) { return checked_one(data, pixels, false); }, "data"_a, "pixels"_a = 64,
        "`jpeg_checked` of one, which stays as it is if it is no ordinary sequential JPEG. RuntimeError: what is wrong.");
  m.def("jpeg_check", [](const nb::bytes& data) { checked_one(data, 0, true); }, "data"_a, "`jpeg_checked` of one. RuntimeError: what is wrong.");
  m.def("jpeg_end",
        [](const nb::bytes& data, size_t start) { return end_of_jpeg(bytes_of(data), data.size(), start); }, "data"_a, "start"_a,
        "The position behind the first FFD9 from `start` on, or 0 if there is none. Faster than bytes.find.");
  m.def("jpeg_shrink", &shrink, "data"_a, "width"_a, "height"_a, "to_width"_a, "to_height"_a, "quality"_a,
        "An ordinary JPEG of width x height, resized with antialiasing and encoded as 4:2:0 (or grey). Empty if the JPEG is unusual\n"
        "or damaged: decode it by other means.");
}

}  // namespace dp4tl
