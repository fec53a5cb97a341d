// A decoder for ordinary JPEGs (header.h) that decodes only what a crop needs: it begins at the nearest entry before the crop (a
// restart marker, or an entry of an index), stops below it, computes no inverse DCT beside it, and decodes to planes, so that nothing
// is upsampled or converted at full size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/isa/kernels.h"
#include "core/jpeg/header.h"
#include "core/jpeg/lanes.h"
#include "core/jpeg/tables.h"
#include "core/jpeg/turbo.h"
#include "core/pixels/pixels.h"

namespace dp4tl {

class CropDecoder {
 public:
  explicit CropDecoder(const Kernels& kernels) : scans_(kernels) {}

  // The planes that hold `wanted`, and one sample around it where chroma is coarser than luma; bit for bit the samples of libjpeg's
  // accurate IDCT. Valid until the next call. False if the JPEG is unusual, damaged, or not width x height: libjpeg-turbo then decides.
  // Memory is bounded by the length of the JPEG, whatever size it claims: 256 bytes per byte.
  // `shrink` 2, 4 or 8: each sample covers that many pixels per side, from the lowest frequencies alone. Subsampled chroma shrinks less.
  bool decode(const uint8_t* data, size_t size, int width, int height, const Rect& wanted, Pixels& pixels, int shrink = 1);

  // The same for several JPEGs in turn, which takes less time than one by one. What one becomes does not depend on the others.
  // Begin with one in a lane that is free, from 0 to kLanes - 1. False as above. `data` stay where they are meanwhile.
  bool begin(int lane, const uint8_t* data, size_t size, int width, int height, const Rect& wanted, int shrink = 1);
  // Go on until a lane is done and free; at least one must be busy. Returns its number.
  int advance() { return scans_.advance(); }
  // What the lane made; null if its JPEG is damaged. Valid until the next begin() there.
  const Pixels* pixels(int lane) const { return scans_.is_good(lane) ? &lanes_[lane].pixels : nullptr; }

 private:
  struct Lane {
    JpegHeader header;
    Scan scan;
    std::vector<ScanEntry> entries;
    std::shared_ptr<const HuffmanTable> dc[3], ac[3];
    alignas(64) int16_t quant[3][64];  // row by row
    Scratch<uint8_t> planes;
    Pixels pixels;
  };

  ScanDecoder scans_;
  HuffmanCache tables_;
  Lane lanes_[kLanes];
};

}  // namespace dp4tl
