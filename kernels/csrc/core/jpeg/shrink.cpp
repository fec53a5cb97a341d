#include "core/jpeg/shrink.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/jpeg/libjpeg.h"

namespace dp4tl {
namespace {

struct PlaneOut {  // what libjpeg reads: whole blocks, edges repeated
  const uint8_t* data;
  ptrdiff_t stride;
};

void encode(const PlaneOut* planes, int components, int width, int height, int quality, LibjpegErrors& errors, LibjpegWriter& to) {
  to.create(errors);
  to.info.image_width = static_cast<JDIMENSION>(width);
  to.info.image_height = static_cast<JDIMENSION>(height);
  to.info.input_components = components;
  to.info.in_color_space = components == 1 ? JCS_GRAYSCALE : JCS_YCbCr;
  jpeg_set_defaults(&to.info);  // 3 components: 2 x 2, 1 x 1, 1 x 1
  jpeg_set_quality(&to.info, quality, TRUE);
  to.info.raw_data_in = TRUE;
  jpeg_start_compress(&to.info, TRUE);
  const int lines = components == 1 ? 8 : 16;  // a row of MCUs
  JSAMPROW rows[3][16];
  JSAMPARRAY arrays[3] = {rows[0], rows[1], rows[2]};
  for (int y = 0; y < height; y += lines) {
    for (int c = 0; c < components; ++c) {
      const int n = c == 0 ? lines : lines / 2, first = c == 0 ? y : y / 2;
      for (int i = 0; i < n; ++i) rows[c][i] = const_cast<JSAMPROW>(planes[c].data + (first + i) * planes[c].stride);
    }
    jpeg_write_raw_data(&to.info, arrays, static_cast<JDIMENSION>(lines));
  }
  jpeg_finish_compress(&to.info);
}

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Repeats the last sample of each row, and the last row, up to whole MCUs.
void extend(uint8_t* plane, ptrdiff_t stride, int width, int height, int full_height) {
  for (int y = 0; y < height; ++y) {
    std::memset(plane + y * stride + width, plane[y * stride + width - 1], static_cast<size_t>(stride - width));
  }
  for (int y = height; y < full_height; ++y) std::memcpy(plane + y * stride, plane + (height - 1) * stride, static_cast<size_t>(stride));
}

}  // namespace

void JpegShrinker::resize(const Plane& plane, Size from, Size to, int step, int width, int height, uint8_t* out, ptrdiff_t stride) {
  // Output sample i is centred at (i + 0.5) * step pixels of `to`; the last one may reach beyond the image.
  const double wide = static_cast<double>(from.width) / plane.step_x * width * step / to.width;
  const double high = static_cast<double>(from.height) / plane.step_y * height * step / to.height;
  across_.compute(0, wide, 0, plane.width, 0, width, false);
  down_.compute(0, high, 0, plane.height, 0, height, false);
  const int n = plane.width, padded = round_up(n, 16);
  int16_t* rows = rows_.at_least(static_cast<size_t>(padded) * kBand);
  int16_t* columns = columns_.at_least(static_cast<size_t>(padded) * kBand);
  int16_t* band = band_.at_least(static_cast<size_t>(round_up(width, 8)) * kBand);
  for (int first = 0; first < height; first += kBand) {
    for (int i = 0; i < kBand; ++i) {
      const int row = std::min(first + i, height - 1);  // the last band repeats its last row, which is not stored
      kernels_.blend_rows(plane.data + down_.start[static_cast<size_t>(row)] * plane.stride, plane.stride,
                          &down_.weight[static_cast<size_t>(row) * static_cast<size_t>(down_.taps)], down_.taps, n, rows + i * padded);
    }
    kernels_.to_columns(rows, padded, n, kBand, columns);
    kernels_.blend_columns(columns, 1, across_.start.data(), across_.weight.data(), across_.taps, width, 0, band);
    const int count = std::min(kBand, height - first);
    for (int i = 0; i < count; ++i) {
      uint8_t* line = out + (first + i) * stride;
      for (int x = 0; x < width; ++x) line[x] = static_cast<uint8_t>(std::clamp((band[x * kBand + i] + 64) >> 7, 0, 255));
    }
  }
}

std::string JpegShrinker::run(const uint8_t* data, size_t size, Size from, Size to, int quality) {
  if (to.width < 1 || to.height < 1 || to.width > from.width || to.height > from.height)
    throw Error("a JPEG of " + std::to_string(from.width) + " x " + std::to_string(from.height) + " cannot be shrunk to " +
                std::to_string(to.width) + " x " + std::to_string(to.height));
  Pixels pixels;
  if (!decoder_.decode(data, size, from.width, from.height, {0, 0, from.width, from.height}, pixels)) return {};
  if (pixels.color == Color::kRgb) return {};
  const int components = pixels.color == Color::kGray ? 1 : 3, mcu = components == 1 ? 8 : 16;
  const ptrdiff_t stride = round_up(to.width, mcu);
  const int full_height = round_up(to.height, mcu);
  uint8_t* planes = planes_.at_least(static_cast<size_t>(stride) * static_cast<size_t>(full_height) * 3 / 2 + 16);
  PlaneOut outs[3] = {};
  for (int c = 0; c < components; ++c) {
    const int step = c == 0 ? 1 : 2;
    const int width = (to.width + step - 1) / step, height = (to.height + step - 1) / step;
    outs[c] = {planes, stride / step};
    resize(pixels.planes[c], from, to, step, width, height, planes, stride / step);
    extend(planes, stride / step, width, height, full_height / step);
    planes += stride / step * (full_height / step);
  }
  LibjpegErrors errors;
  LibjpegWriter jpeg;
  if (!errors.run([&] { encode(outs, components, to.width, to.height, quality, errors, jpeg); })) {
    throw Error(std::string("cannot be encoded as JPEG: ") + errors.why());
  }
  return jpeg.bytes();
}

}  // namespace dp4tl
