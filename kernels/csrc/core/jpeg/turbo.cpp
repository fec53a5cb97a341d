#include "core/jpeg/turbo.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/jpeg/libjpeg.h"

namespace dp4tl {
namespace {

// Pillow's CMYK to RGB, c * k / 255: it takes all values for inverted, as Adobe writes them, with an Adobe marker or without.
void cmyk_to_rgb(const uint8_t* from, uint8_t* to, int n) {
  for (int i = 0; i < n; ++i, from += 4, to += 3) {
    for (int c = 0; c < 3; ++c) {
      const int product = from[c] * from[3] + 128;
      to[c] = static_cast<uint8_t>((product + (product >> 8)) >> 8);
    }
  }
}

void decode_rows(LibjpegErrors& errors, jpeg_decompress_struct& info, const uint8_t* data, size_t size, int width, int height,
                 const Rect& wanted, Scratch<uint8_t>& pixels_memory, Scratch<uint8_t>& line_memory, Pixels& pixels) {
  info.err = &errors;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, data, size);
  jpeg_read_header(&info, TRUE);
  if (static_cast<int>(info.image_width) != width || static_cast<int>(info.image_height) != height) {
    throw Error("the JPEG is " + std::to_string(info.image_width) + " x " + std::to_string(info.image_height) +
                " pixels, but the table says " + std::to_string(width) + " x " + std::to_string(height));
  }
  const bool gray = info.jpeg_color_space == JCS_GRAYSCALE;
  const bool cmyk = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
  info.out_color_space = gray ? JCS_GRAYSCALE : cmyk ? JCS_CMYK : JCS_RGB;
  info.dct_method = JDCT_ISLOW;
  info.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&info);

  // Columns: libjpeg rounds x down to a whole MCU and widens. One more on each side, so that smooth chroma sees its neighbours; and a
  // whole MCU at least, for libjpeg upsamples by another rule where fewer than two or three samples of chroma are left.
  const int mcu = DCTSIZE * info.max_h_samp_factor;
  const int first = std::max(0, std::min(wanted.x - 1, width - mcu));
  auto left = static_cast<JDIMENSION>(first);
  auto span = static_cast<JDIMENSION>(std::min(width, std::max(wanted.x + wanted.width + 1, first + mcu)) - first);
  if (static_cast<int>(span) < width) jpeg_crop_scanline(&info, &left, &span);
  if (wanted.y > 0) jpeg_skip_scanlines(&info, static_cast<JDIMENSION>(wanted.y));
  const int channels = gray ? 1 : 3;
  const size_t stride = static_cast<size_t>(info.output_width) * static_cast<size_t>(channels);
  uint8_t* out = pixels_memory.at_least(stride * static_cast<size_t>(wanted.height));
  uint8_t* line = cmyk ? line_memory.at_least(static_cast<size_t>(info.output_width) * 4) : nullptr;
  for (int row = 0; row < wanted.height; ++row) {
    uint8_t* to = out + static_cast<size_t>(row) * stride;
    JSAMPROW target = cmyk ? line : to;
    if (jpeg_read_scanlines(&info, &target, 1) != 1) throw Error("its JPEG data end early");
    if (cmyk) cmyk_to_rgb(line, to, static_cast<int>(info.output_width));
  }
  pixels.color = gray ? Color::kGray : Color::kRgb;
  pixels.planes[0] = {out, static_cast<ptrdiff_t>(stride), static_cast<int>(left), wanted.y, width, height, 1, 1};
}

}  // namespace

Pixels TurboDecoder::decode(const uint8_t* data, size_t size, int width, int height, const Rect& wanted) {
  LibjpegErrors errors;
  LibjpegReader jpeg;
  Pixels pixels;
  if (!errors.run([&] { decode_rows(errors, jpeg.info, data, size, width, height, wanted, pixels_, line_, pixels); })) {
    throw Error(std::string("is not a JPEG that can be decoded: ") + errors.why());
  }
  return pixels;
}

}  // namespace dp4tl
