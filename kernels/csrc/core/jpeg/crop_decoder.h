// An own decoder for ordinary JPEGs (header.h) that decodes only what a crop needs: from the nearest entry before it
// (a restart marker, or one of an index),
// no row below it, no inverse DCT beside it, and to planes, so that nothing is upsampled or converted at full size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/isa/kernels.h"
#include "core/jpeg/header.h"
#include "core/jpeg/tables.h"
#include "core/jpeg/turbo.h"
#include "core/pixels/pixels.h"

namespace dp4tl {

class CropDecoder {
 public:
  explicit CropDecoder(const Kernels& kernels) : kernels_(kernels) {}

  // The planes that hold `wanted` and one chroma sample around it, the samples bit for bit those of libjpeg's accurate IDCT. Valid
  // until the next call. False if the JPEG is unusual, damaged, or not width x height: libjpeg-turbo has the last word then.
  // Memory is bounded by the bytes at hand, whatever size they claim: 256 bytes for each.
  // `shrink` 2, 4 or 8: planes of that many pixels a sample a side, from the lowest frequencies alone. Chroma keeps what it has.
  bool decode(const uint8_t* data, size_t size, int width, int height, const Rect& wanted, Pixels& pixels, int shrink = 1);

 private:
  bool find_restarts(const uint8_t* data, size_t size, int needed);

  const Kernels& kernels_;
  JpegHeader header_;
  HuffmanCache tables_;
  std::vector<ScanEntry> entries_;
  Scratch<uint8_t> planes_;
};

}  // namespace dp4tl
