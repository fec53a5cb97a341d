// dp4tl_fast.kernels._native.jpeg_*: lossless rewriting, for the converter.
#include <nanobind/nanobind.h>

#include <cstring>

#include "bindings/register.h"
#include "core/jpeg_recode.h"
#include "core/jpeg_shrink.h"
#include "core/jpeg_transcode.h"
#include "core/kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {

void register_jpeg(nb::module_& m) {
  m.def("jpeg_add_entry_points",
        [](nb::bytes data, int interval) {
          std::string result;
          {
            nb::gil_scoped_release free;  // the caller's reference keeps the bytes alive
            thread_local JpegRecoder recoder;  // most JPEGs; libjpeg does the unusual ones, or says what is wrong
            result = recoder.run(static_cast<const uint8_t*>(data.data()), data.size(), interval);
            if (result.empty()) result = add_entry_points(static_cast<const uint8_t*>(data.data()), data.size(), interval);
          }
          return nb::bytes(result.data(), result.size());
        },
        "data"_a, "interval"_a = 4,
        "The same JPEG as baseline data with a restart marker every `interval` MCUs and optimised Huffman tables: pixels are\n"
        "identical, and the native loader decodes only the intervals that a crop touches. RuntimeError: not a JPEG, or damaged.");
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
        [](nb::bytes data, int width, int height, int to_width, int to_height, int quality, int interval) {
          std::string result;
          {
            nb::gil_scoped_release free;
            thread_local JpegShrinker shrinker(kernels_for("auto"));
            result = shrinker.run(static_cast<const uint8_t*>(data.data()), data.size(), {width, height}, {to_width, to_height},
                                  quality, interval);
          }
          return nb::bytes(result.data(), result.size());
        },
        "data"_a, "width"_a, "height"_a, "to_width"_a, "to_height"_a, "quality"_a, "interval"_a = 0,
        "An ordinary JPEG of width x height, resized with antialiasing and encoded as 4:2:0 (or grey), with a restart marker\n"
        "every `interval` MCUs (0: none). Empty where the JPEG is unusual or damaged: decode it by other means.");
}

}  // namespace dp4tl
