// Entry points without loss, at the level of Huffman symbols: nothing is dequantised, no coefficient array is built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/jpeg_header.h"

namespace dp4tl {

// One thread's; keeps its buffers from image to image.
class JpegRecoder {
 public:
  // The same symbols with a restart marker every `interval` MCUs (DC differences begin anew there) and Huffman tables that are
  // optimal for this image. Metadata other than JFIF and Adobe markers are left out. Empty if the JPEG is not one that
  // parse_jpeg takes, or is damaged: libjpeg (add_entry_points) has the last word then.
  std::string run(const uint8_t* data, size_t size, int interval);

 private:
  bool read_symbols(const uint8_t* data, size_t size, const JpegHeader& header, int interval);

  // A symbol: table << 24 | symbol << 16 | the bits that follow its code. Tables: 0, 1 DC of luma, chroma; 2, 3 AC.
  std::vector<uint32_t> symbols_;  // never shrinks
  std::vector<size_t> intervals_;  // where restart intervals begin in symbols_, and the end
  int64_t counts_[4][256];
};

}  // namespace dp4tl
