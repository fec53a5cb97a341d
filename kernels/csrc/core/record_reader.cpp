#include "core/record_reader.h"

#include <algorithm>

#include "core/error.h"

namespace dp4tl {

void RecordReader::run(int64_t number, const Record& record, uint32_t epoch, uint8_t* to, size_t view_stride) {
  int left = record.width, top = record.height, right = 0, bottom = 0;  // what all views together need
  for (size_t v = 0; v < crops_.size(); ++v) {
    Crop& c = crops_[v];
    c = sample_crop(spec_, record.width, record.height, number, epoch, static_cast<uint32_t>(v));
    left = std::min(left, c.x);
    top = std::min(top, c.y);
    right = std::max(right, c.x + c.width);
    bottom = std::max(bottom, c.y + c.height);
  }
  const Pixels pixels = pixels_of(record, {left, top, right - left, bottom - top});
  for (size_t v = 0; v < crops_.size(); ++v) resizer_.run(pixels, crops_[v], output_, to + v * view_stride);
}

Pixels RecordReader::pixels_of(const Record& record, const Rect& wanted) {
  if (!record.raw) {
    uint8_t* bytes = bytes_.at_least(record.size);
    file_.read(record.offset, record.size, bytes);
    Pixels planes;
    if (!exact_ && crop_decoder_.decode(bytes, record.size, record.width, record.height, wanted, planes)) return planes;
    return turbo_.decode(bytes, record.size, record.width, record.height, wanted);
  }
  const size_t stride = size_t{3} * record.width;  // whole rows: one read
  const size_t size = stride * static_cast<size_t>(wanted.height);
  uint8_t* bytes = bytes_.at_least(size);
  file_.read(record.offset + stride * static_cast<size_t>(wanted.y), size, bytes);
  Pixels pixels;
  pixels.planes[0] = {bytes, static_cast<ptrdiff_t>(stride), 0, wanted.y, record.width, record.height, 1, 1};
  return pixels;
}

}  // namespace dp4tl
