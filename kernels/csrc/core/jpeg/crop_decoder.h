// A decoder for ordinary JPEGs (header.h) that decodes only what a crop needs: it begins at the nearest entry before the crop (a
// restart marker, or an entry of an index), stops below it, computes no inverse DCT beside it, and decodes to planes, so that nothing
// is upsampled or converted at full size.
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
  // until the next call. False if the JPEG is unusual, damaged, or not width x height: libjpeg-turbo then decides.
  // Memory is bounded by the length of the JPEG, whatever size it claims: 256 bytes per byte.
  // `shrink` 2, 4 or 8: each sample covers that many pixels per side, from the lowest frequencies alone. Subsampled chroma shrinks less.
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
