// A smaller JPEG from a JPEG, without leaving YCbCr: planes are decoded, resized with antialiasing, and encoded as 4:2:0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/jpeg/crop_decoder.h"
#include "core/pixels/pixels.h"

namespace dp4tl {

// For one thread; reuses its buffers from image to image.
class JpegShrinker {
 public:
  explicit JpegShrinker(const Kernels& kernels) : kernels_(kernels), decoder_(kernels) {}

  struct Size {
    int width, height;
  };

  // The image of size `from` as a baseline JPEG of size `to` (which is not larger), grey or 4:2:0. Empty if the crop decoder does not
  // accept the JPEG, which may be unusual or damaged.
  std::string run(const uint8_t* data, size_t size, Size from, Size to, int quality);

 private:
  // Resizes the plane, which covers `from`, to `width` x `height` samples of `step` pixels of `to` each.
  void resize(const Plane& plane, Size from, Size to, int step, int width, int height, uint8_t* out, ptrdiff_t stride);

  const Kernels& kernels_;
  CropDecoder decoder_;
  Weights across_, down_;
  Scratch<int16_t> rows_, columns_, band_;
  Scratch<uint8_t> planes_;
};

}  // namespace dp4tl
