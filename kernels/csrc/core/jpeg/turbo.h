// libjpeg-turbo: the reference decoder, and the one for everything unusual.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/pixels/pixels.h"

namespace dp4tl {

struct Rect {
  int x, y, width, height;
};

// For one thread; reuses its buffers from image to image.
class TurboDecoder {
 public:
  TurboDecoder();
  ~TurboDecoder();

  // Decode the pixels of `wanted` with the accurate IDCT and smooth chroma, to interleaved RGB or greyscale. CMYK and YCCK become
  // RGB as Pillow converts them. The result is valid until the next call.
  // Throws Error: not a JPEG, truncated, or its size is not width x height.
  Pixels decode(const uint8_t* data, size_t size, int width, int height, const Rect& wanted);

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace dp4tl
