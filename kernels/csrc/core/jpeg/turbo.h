// libjpeg-turbo: the reference decoder, and the one for everything unusual.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/pixels/pixels.h"

namespace dp4tl {

struct Rect {
  int x, y, width, height;
};

// For one thread; reuses its buffers from image to image, and nothing else.
class TurboDecoder {
 public:
  // Decode the pixels of `wanted` with the accurate IDCT and smooth chroma, to interleaved RGB or greyscale. CMYK and YCCK become
  // RGB as Pillow converts them. The result is valid until the next call.
  // Missing Huffman tables are the standard ones (frames of Motion JPEG).
  // Throws Error: not a JPEG, truncated, without quantisation tables, or its size is not width x height.
  Pixels decode(const uint8_t* data, size_t size, int width, int height, const Rect& wanted);

 private:
  Scratch<uint8_t> pixels_, line_;
};

}  // namespace dp4tl
