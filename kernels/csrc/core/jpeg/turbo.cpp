#include "core/jpeg/turbo.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/jpeg/libjpeg.h"

namespace dp4tl {

struct TurboDecoder::State {
  LibjpegErrors errors;
  jpeg_decompress_struct info{};
  Scratch<uint8_t> pixels, line;
};

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

// Make the decoder ready for the next image, however decoding went: the rows below the crop are never decoded.
struct Abort {
  jpeg_decompress_struct& info;
  ~Abort() { jpeg_abort_decompress(&info); }
};

void decode_rows(TurboDecoder::State& s, const uint8_t* data, size_t size, int width, int height, const Rect& wanted, Pixels& pixels) {
  jpeg_mem_src(&s.info, data, size);
  jpeg_read_header(&s.info, TRUE);
  if (static_cast<int>(s.info.image_width) != width || static_cast<int>(s.info.image_height) != height) {
    throw Error("the JPEG is " + std::to_string(s.info.image_width) + " x " + std::to_string(s.info.image_height) +
                " pixels, but the table says " + std::to_string(width) + " x " + std::to_string(height));
  }
  const bool gray = s.info.jpeg_color_space == JCS_GRAYSCALE;
  const bool cmyk = s.info.jpeg_color_space == JCS_CMYK || s.info.jpeg_color_space == JCS_YCCK;
  s.info.out_color_space = gray ? JCS_GRAYSCALE : cmyk ? JCS_CMYK : JCS_RGB;
  s.info.dct_method = JDCT_ISLOW;
  s.info.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&s.info);

  // Columns: libjpeg rounds x down to a whole MCU and widens. One more on each side, so that smooth chroma sees its neighbours.
  JDIMENSION left = static_cast<JDIMENSION>(std::max(0, wanted.x - 1));
  JDIMENSION span = static_cast<JDIMENSION>(std::min(width, wanted.x + wanted.width + 1)) - left;
  if (static_cast<int>(span) < width) jpeg_crop_scanline(&s.info, &left, &span);
  if (wanted.y > 0) jpeg_skip_scanlines(&s.info, static_cast<JDIMENSION>(wanted.y));
  const int channels = gray ? 1 : 3;
  const size_t stride = static_cast<size_t>(s.info.output_width) * static_cast<size_t>(channels);
  uint8_t* out = s.pixels.at_least(stride * static_cast<size_t>(wanted.height));
  uint8_t* line = cmyk ? s.line.at_least(static_cast<size_t>(s.info.output_width) * 4) : nullptr;
  for (int row = 0; row < wanted.height; ++row) {
    uint8_t* to = out + static_cast<size_t>(row) * stride;
    JSAMPROW target = cmyk ? line : to;
    if (jpeg_read_scanlines(&s.info, &target, 1) != 1) throw Error("its JPEG data end early");
    if (cmyk) cmyk_to_rgb(line, to, static_cast<int>(s.info.output_width));
  }
  pixels.color = gray ? Color::kGray : Color::kRgb;
  pixels.planes[0] = {out, static_cast<ptrdiff_t>(stride), static_cast<int>(left), wanted.y, width, height, 1, 1};
}

}  // namespace

TurboDecoder::TurboDecoder() : state_(new State) {
  State& s = *state_;
  s.info.err = &s.errors;
  if (!s.errors.run([&] { jpeg_create_decompress(&s.info); })) throw Error(std::string("libjpeg: ") + s.errors.why());
}

TurboDecoder::~TurboDecoder() { jpeg_destroy_decompress(&state_->info); }

Pixels TurboDecoder::decode(const uint8_t* data, size_t size, int width, int height, const Rect& wanted) {
  State& s = *state_;
  const Abort abort{s.info};
  Pixels pixels;
  if (!s.errors.run([&] { decode_rows(s, data, size, width, height, wanted, pixels); })) {
    throw Error(std::string("is not a JPEG that can be decoded: ") + s.errors.why());
  }
  return pixels;
}

}  // namespace dp4tl
