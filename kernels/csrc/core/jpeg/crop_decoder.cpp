#include "core/jpeg/crop_decoder.h"

#include <algorithm>
#include <cstring>

#include "core/jpeg/index.h"

namespace dp4tl {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Find the first `needed` restart intervals in data[0 .. size). False if markers are missing or out of order.
bool find_restarts(const uint8_t* data, size_t size, int needed, std::vector<ScanEntry>& entries) {
  entries.assign(1, {});
  size_t at = 0;
  for (;;) {
    const auto* found = static_cast<const uint8_t*>(std::memchr(data + at, 0xFF, size - at));
    if (!found || found + 1 >= data + size) {
      entries.back().stop = static_cast<uint32_t>(size);  // no end marker: the decoder notices if bits are missing
      break;
    }
    at = static_cast<size_t>(found - data) + 1;
    const int marker = found[1];
    if (marker == 0 || marker == 0xFF) continue;  // a stuffed FF, or fill
    entries.back().stop = static_cast<uint32_t>(found - data);
    const auto n = static_cast<int>(entries.size());
    if (n == needed || marker != 0xD0 + (n - 1) % 8) break;  // enough; or the end of the image, or damage
    ++at;
    entries.push_back({static_cast<uint32_t>(at), 0, {}, 0});
  }
  return static_cast<int>(entries.size()) == needed;
}

}  // namespace

bool CropDecoder::decode(const uint8_t* data, size_t size, int width, int height, const Rect& wanted, Pixels& pixels, int shrink) {
  if (!begin(0, data, size, width, height, wanted, shrink)) return false;
  const Pixels* found = this->pixels(advance());
  if (found) pixels = *found;
  return found != nullptr;
}

bool CropDecoder::begin(int lane, const uint8_t* data, size_t size, int width, int height, const Rect& wanted, int shrink) {
  Lane& l = lanes_[lane];
  const JpegHeader& h = l.header;
  if (size > UINT32_MAX || !parse_jpeg(data, size, l.header)) return false;
  if (h.width != width || h.height != height) return false;

  // Subsampled chroma is shrunk less, so that its planes become as large as luma's where possible.
  const int step_x = h.component[0].h, step_y = h.component[0].v;
  const int luma_size = 8 / shrink, chroma_size = std::min(8, luma_size * std::min(step_x, step_y));
  // Where they remain smaller, one more chroma sample on each side, which smooth upsampling would use.
  const int chroma_x = step_x * 8 / chroma_size, chroma_y = step_y * 8 / chroma_size;  // pixels to a sample
  const int margin_x = chroma_x > shrink ? chroma_x : 0, margin_y = chroma_y > shrink ? chroma_y : 0;
  Scan& scan = l.scan;
  scan = Scan{};
  scan.mcus_per_row = h.mcus_per_row();
  const int mcu_rows = h.mcu_rows();
  scan.column0 = std::max(0, wanted.x - margin_x) / h.mcu_width();
  scan.row0 = std::max(0, wanted.y - margin_y) / h.mcu_height();
  scan.column1 = std::min(scan.mcus_per_row, ceil_div(wanted.x + wanted.width + margin_x, h.mcu_width()));
  scan.row1 = std::min(mcu_rows, ceil_div(wanted.y + wanted.height + margin_y, h.mcu_height()));
  const int columns = scan.column1 - scan.column0, rows = scan.row1 - scan.row0;
  // A block takes at least two bits. With fewer the data end early: do not allocate memory for all blocks.
  int64_t blocks = 0;
  for (int i = 0; i < h.components; ++i) blocks += int64_t{h.component[i].h} * h.component[i].v;
  if (blocks * scan.mcus_per_row * mcu_rows > int64_t{4} * static_cast<int64_t>(size - h.scan)) return false;

  scan.data = data + h.scan;
  scan.end = data + size;
  const int last = (scan.row1 - 1) * scan.mcus_per_row + scan.column1 - 1;  // wanted MCU
  scan.restarts = h.restart_interval > 0;
  if (scan.restarts) {
    scan.interval = h.restart_interval;
    if (!find_restarts(scan.data, size - h.scan, last / scan.interval + 1, l.entries)) return false;
  } else if (!(scan.interval = read_index(h, data, size, last, l.entries))) {
    scan.interval = scan.mcus_per_row * mcu_rows;
    l.entries.assign(1, {0, static_cast<uint32_t>(size - h.scan), {}, 0});
  }
  scan.entries = l.entries.data();
  scan.num_entries = static_cast<int>(l.entries.size());

  size_t bytes = 0, offsets[3] = {};
  for (int i = 0; i < h.components; ++i) {
    const auto& c = h.component[i];
    const int block = i == 0 ? luma_size : chroma_size;
    offsets[i] = bytes;
    bytes += static_cast<size_t>(columns) * block * c.h * rows * block * c.v;
  }
  uint8_t* planes = l.planes.at_least(bytes);
  scan.components = h.components;
  l.pixels.color = h.color;
  for (int i = 0; i < h.components; ++i) {
    const auto& c = h.component[i];
    const int block = i == 0 ? luma_size : chroma_size;
    l.dc[i] = tables_.get(h.dc[c.dc], false), l.ac[i] = tables_.get(h.ac[c.ac], true);
    if (!l.dc[i] || !l.ac[i]) return false;
    for (int k = 0; k < 64; ++k) l.quant[i][kZigzag[k]] = static_cast<int16_t>(h.quant[c.quant][k]);
    ScanComponent& to = scan.component[i];
    to = {l.dc[i].get(), l.ac[i].get(), l.quant[i], c.h, c.v, block, planes + offsets[i], static_cast<ptrdiff_t>(columns) * block * c.h};
    const int sx = step_x / c.h * (8 / block), sy = step_y / c.v * (8 / block);
    l.pixels.planes[i] = {to.plane, to.stride, scan.column0 * block * c.h, scan.row0 * block * c.v,
                          ceil_div(width, sx), ceil_div(height, sy), sx, sy};
  }
  scans_.begin(lane, scan);
  return true;
}

}  // namespace dp4tl
