#include "core/loader/record_reader.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace dp4tl {
namespace {

using Clock = std::chrono::steady_clock;

// Add the seconds since `since` to `stage`, and restart the clock.
void charge(double& stage, Clock::time_point& since) {
  const Clock::time_point now = Clock::now();
  stage += std::chrono::duration<double>(now - since).count();
  since = now;
}

// How many times larger than the output the crop's planes must still be after shrinking in the frequency domain. With 2 a view stays
// within the bounds of native.py, and 500-pixel images decode to 32 pixels 20 % faster, to 64 pixels 8 %; with 1 some errors would be
// visible.
constexpr int kReserve = 2;

}  // namespace

void RecordReader::run(int64_t number, const Record& record, const uint8_t* payload, uint32_t epoch, uint8_t* to, size_t view_stride) {
  try {
    views(number, record, payload, epoch, to, view_stride);
  } catch (const Error&) {
    file_.check();  // a file that shrank is the better reason
    throw;
  }
  file_.check();
}

void RecordReader::views(int64_t number, const Record& record, const uint8_t* payload, uint32_t epoch, uint8_t* to, size_t view_stride) {
  for (size_t v = 0; v < crops_.size(); ++v) {
    crops_[v] = sample_crop(spec_, record.width, record.height, number, epoch, static_cast<uint32_t>(v));
  }
  // Decode once for all views of the same scale, which is nearly always all of them. No view depends on another.
  for (int scale = 1; scale <= 8; scale *= 2) {
    int left = record.width, top = record.height, right = 0, bottom = 0;  // what these views together need
    for (const Crop& c : crops_) {
      if (shrink(record, c) != scale) continue;
      left = std::min(left, c.x);
      top = std::min(top, c.y);
      right = std::max(right, c.x + c.width);
      bottom = std::max(bottom, c.y + c.height);
    }
    if (right == 0) continue;
    const Pixels pixels = pixels_of(record, payload, {left, top, right - left, bottom - top}, scale);
    Clock::time_point since = Clock::now();
    for (size_t v = 0; v < crops_.size(); ++v) {
      if (shrink(record, crops_[v]) == scale) resizer_.run(pixels, crops_[v], output_, to + v * view_stride);
    }
    charge(stages_.resize, since);
  }
}

// How many pixels per side the JPEG decoder merges into a sample: few enough that the resize still shrinks the result.
int RecordReader::shrink(const Record& record, const Crop& crop) const {
  const int side = std::min(crop.width, crop.height);
  int factor = 1;
  if (record.raw || exact_) return factor;
  while (factor < 8 && side / (2 * factor * kReserve) >= output_.size) factor *= 2;
  return factor;
}

Pixels RecordReader::pixels_of(const Record& record, const uint8_t* payload, const Rect& wanted, int scale) {
  if (!record.raw && is_implausible(record.width, record.height, record.size)) {
    throw Error("claims " + std::to_string(record.width) + " x " + std::to_string(record.height) + " pixels in " +
                std::to_string(record.size) + " bytes");
  }
  Clock::time_point since = Clock::now();
  // Of raw pixels only the rows that are wanted, in one read.
  const size_t stride = size_t{3} * record.width;
  const size_t skipped = record.raw ? stride * static_cast<size_t>(wanted.y) : 0;
  const size_t size = record.raw ? stride * static_cast<size_t>(wanted.height) : record.size;
  const uint8_t* bytes = payload ? payload + skipped : file_.view(record.offset + skipped, size);
  if (!bytes) {
    uint8_t* own = bytes_.at_least(size);
    file_.read(record.offset + skipped, size, own);
    bytes = own;
  }
  charge(stages_.read, since);
  Pixels pixels;
  if (record.raw) {
    pixels.planes[0] = {bytes, static_cast<ptrdiff_t>(stride), 0, wanted.y, record.width, record.height, 1, 1};
  } else if (exact_ || !crop_decoder_.decode(bytes, size, record.width, record.height, wanted, pixels, scale)) {
    pixels = turbo_.decode(bytes, size, record.width, record.height, wanted);
  }
  charge(stages_.decode, since);
  return pixels;
}

}  // namespace dp4tl
