#include "core/jpeg/header.h"

#include <cstring>

namespace dp4tl {
namespace {

int be16(const uint8_t* p) { return p[0] << 8 | p[1]; }

// Each reads the payload [p, end) of one segment and returns false if it is damaged or unusual.

bool read_quant(const uint8_t* p, const uint8_t* end, JpegHeader& header) {
  while (p < end) {
    const int wide = *p >> 4, id = *p & 15;
    ++p;
    if (wide > 1 || id > 3 || end - p < 64 * (1 + wide)) return false;
    for (int i = 0; i < 64; ++i) header.quant[id][i] = static_cast<uint16_t>(wide ? be16(p + 2 * i) : p[i]);
    header.has_quant[id] = true;
    p += 64 * (1 + wide);
  }
  return true;
}

bool read_huffman(const uint8_t* p, const uint8_t* end, JpegHeader& header) {
  while (p < end) {
    const int ac = *p >> 4, id = *p & 15;
    ++p;
    if (ac > 1 || id > 3 || end - p < 16) return false;
    int symbols = 0;
    for (int i = 0; i < 16; ++i) symbols += p[i];
    if (symbols > 256 || end - p < 16 + symbols) return false;
    (ac ? header.ac : header.dc)[id] = {p, symbols};
    p += 16 + symbols;
  }
  return true;
}

bool read_frame(const uint8_t* p, const uint8_t* end, JpegHeader& header) {
  if (end - p < 6 || header.components != 0) return false;
  header.height = be16(p + 1);
  header.width = be16(p + 3);
  header.components = p[5];
  if (p[0] != 8 || header.width == 0 || header.height == 0 || (header.components != 1 && header.components != 3)) return false;
  if (end - p != 6 + 3 * header.components) return false;
  for (int i = 0; i < header.components; ++i) {
    const uint8_t* c = p + 6 + 3 * i;
    JpegHeader::Component& to = header.component[i];
    to.id = c[0], to.h = c[1] >> 4, to.v = c[1] & 15, to.quant = c[2];
    if (to.quant > 3 || to.h < 1 || to.v < 1 || to.h > 4 || to.v > 4) return false;
  }
  if (header.components == 1) header.component[0].h = header.component[0].v = 1;  // one component: an MCU is one block
  const auto* c = header.component;
  if (header.components == 3 && (c[1].h != 1 || c[1].v != 1 || c[2].h != 1 || c[2].v != 1)) return false;
  return c[0].h <= 2 && c[0].v <= 2;
}

bool read_scan(const uint8_t* p, const uint8_t* end, JpegHeader& header) {
  const int n = header.components;
  if (n == 0 || end - p != 4 + 2 * n || p[0] != n) return false;
  for (int i = 0; i < n; ++i) {
    JpegHeader::Component& c = header.component[i];
    if (p[1 + 2 * i] != c.id) return false;
    c.dc = p[2 + 2 * i] >> 4, c.ac = p[2 + 2 * i] & 15;
    if (c.dc > 3 || c.ac > 3 || !header.dc[c.dc].bytes || !header.ac[c.ac].bytes || !header.has_quant[c.quant]) return false;
  }
  const uint8_t* rest = p + 1 + 2 * n;
  return rest[0] == 0 && rest[1] == 63 && rest[2] == 0;
}

// As libjpeg guesses it. False: RGB.
bool is_ycc(const JpegHeader& header, bool jfif, int adobe_transform) {
  if (jfif) return true;
  if (adobe_transform >= 0) return adobe_transform != 0;
  const auto* c = header.component;
  return !(c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B');
}

}  // namespace

size_t end_of_jpeg(const uint8_t* data, size_t size, size_t start) {
  for (size_t at = start; at + 1 < size; ++at) {
    const void* found = std::memchr(data + at, 0xFF, size - 1 - at);
    if (!found) break;
    at = static_cast<size_t>(static_cast<const uint8_t*>(found) - data);
    if (data[at + 1] == 0xD9) return at + 2;
  }
  return 0;
}

bool parse_jpeg(const uint8_t* data, size_t size, JpegHeader& header) {
  header = JpegHeader{};
  bool jfif = false;
  int adobe_transform = -1;
  if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return false;
  size_t at = 2;
  for (;;) {
    while (at + 1 < size && data[at] == 0xFF && data[at + 1] == 0xFF) ++at;  // fill bytes
    if (size - at < 4 || data[at] != 0xFF) return false;
    const int marker = data[at + 1], length = be16(data + at + 2);
    if (length < 2 || size - at - 2 < static_cast<size_t>(length)) return false;
    const uint8_t *p = data + at + 4, *end = data + at + 2 + length;
    at += 2 + static_cast<size_t>(length);
    bool good = true;
    if (marker == 0xDB) {
      good = read_quant(p, end, header);
    } else if (marker == 0xC4) {
      good = read_huffman(p, end, header);
    } else if (marker == 0xC0 || marker == 0xC1) {
      good = read_frame(p, end, header);
    } else if (marker == 0xDD) {
      good = end - p == 2;
      if (good) header.restart_interval = be16(p);
    } else if (marker == 0xE0) {
      jfif = jfif || (end - p >= 14 && std::memcmp(p, "JFIF", 5) == 0);
    } else if (marker == 0xEE) {
      if (end - p >= 12 && std::memcmp(p, "Adobe", 5) == 0) adobe_transform = p[11];
    } else if (marker == 0xEF && end - p >= 6 && std::memcmp(p, "DP4TL", 6) == 0) {
      header.index = p;
      header.index_bytes = static_cast<size_t>(end - p);
    } else if (marker == 0xDA) {
      header.scan = at;
      header.color = header.components == 1 ? Color::kGray : Color::kYcc;
      return read_scan(p, end, header) && (header.components == 1 || is_ycc(header, jfif, adobe_transform));
    } else {
      good = (marker >= 0xE1 && marker <= 0xEF) || marker == 0xFE;  // other metadata; anything else is unusual
    }
    if (!good) return false;
  }
}

}  // namespace dp4tl
