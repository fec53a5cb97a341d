// The markers of a JPEG that the crop decoder handles: baseline or extended sequential, Huffman, 8 bits, one scan.
//
//   FF D8 | segments: FF id, length (2 bytes, big-endian, counts itself), payload | FF DA scan header | entropy-coded data | FF D9
//
//   DQT (DB)  precision << 4 | id, 64 values in zigzag order
//   SOF (C0)  precision, height, width, components, then id, h << 4 | v, quantisation table each
//   DHT (C4)  class << 4 | id, 16 counts of codes by length, symbols
//   DRI (DD)  MCUs between restart markers
//   APPF (EF) the index of entry points, when it begins with "DP4TL" and 0
//   SOS (DA)  components, then id, dc << 4 | ac each; 0, 63, 0
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/pixels/pixels.h"

namespace dp4tl {

struct HuffmanSpec {  // as DHT stores it: 16 counts, then the symbols
  const uint8_t* bytes = nullptr;
  int symbols = 0;
};

struct JpegHeader {
  struct Component {
    int id = 0, h = 1, v = 1;  // sampling factors
    int quant = 0, dc = 0, ac = 0;
  };

  int width = 0, height = 0, components = 0;
  Component component[3];
  Color color = Color::kYcc;
  uint16_t quant[4][64] = {};  // zigzag order
  bool has_quant[4] = {};
  HuffmanSpec dc[4], ac[4];
  int restart_interval = 0;  // MCUs; 0: no restart markers
  size_t scan = 0;           // offset of the entropy-coded data
  const uint8_t* index = nullptr;  // the payload of an index segment (index.h), unchecked
  size_t index_bytes = 0;

  int mcu_width() const { return 8 * component[0].h; }
  int mcu_height() const { return 8 * component[0].v; }
  int mcus_per_row() const { return (width + mcu_width() - 1) / mcu_width(); }
  int mcu_rows() const { return (height + mcu_height() - 1) / mcu_height(); }
};

// No JPEG packs that many pixels into its bytes: decoding it would only exhaust memory.
inline bool is_implausible(int64_t width, int64_t height, size_t size) {
  const auto area = static_cast<uint64_t>(width) * static_cast<uint64_t>(height);
  return area > uint64_t{64} << 20 && area / 2048 > size;
}

// The position behind the first end marker (FF D9) at or after `start`, or 0 if there is none.
size_t end_of_jpeg(const uint8_t* data, size_t size, size_t start);

// False if the JPEG is anything else or damaged: libjpeg-turbo then decodes it, or reports what is wrong.
bool parse_jpeg(const uint8_t* data, size_t size, JpegHeader& header);

}  // namespace dp4tl
