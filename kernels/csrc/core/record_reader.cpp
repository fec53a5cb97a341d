#include "core/record_reader.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace dp4tl {
namespace {

using Clock = std::chrono::steady_clock;

// Add the seconds since `since` to `stage`, and begin anew.
void charge(double& stage, Clock::time_point& since) {
  const Clock::time_point now = Clock::now();
  stage += std::chrono::duration<double>(now - since).count();
  since = now;
}

// How often the crop's planes must still be larger than the output after shrinking in the frequency domain. With 2 a view stays
// within the bounds of native.py, and 500-pixel images decode to 32 pixels 20 % faster, to 64 pixels 8 %; with 1 some would be seen.
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
  int left = record.width, top = record.height, right = 0, bottom = 0;  // what all views together need
  for (size_t v = 0; v < crops_.size(); ++v) {
    Crop& c = crops_[v];
    c = sample_crop(spec_, record.width, record.height, number, epoch, static_cast<uint32_t>(v));
    left = std::min(left, c.x);
    top = std::min(top, c.y);
    right = std::max(right, c.x + c.width);
    bottom = std::max(bottom, c.y + c.height);
  }
  const Pixels pixels = pixels_of(record, payload, {left, top, right - left, bottom - top});
  Clock::time_point since = Clock::now();
  for (size_t v = 0; v < crops_.size(); ++v) resizer_.run(pixels, crops_[v], output_, to + v * view_stride);
  charge(stages_.resize, since);
}

// How many pixels a side the JPEG decoder may merge into a sample: so few that every view still shrinks what it decodes.
int RecordReader::shrink() const {
  int side = INT32_MAX;  // the shortest of the crops'
  for (const Crop& c : crops_) side = std::min({side, c.width, c.height});
  int factor = 1;
  while (factor < 8 && side / (2 * factor * kReserve) >= output_.size) factor *= 2;
  return factor;
}

Pixels RecordReader::pixels_of(const Record& record, const uint8_t* payload, const Rect& wanted) {
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
  } else if (exact_ || !crop_decoder_.decode(bytes, size, record.width, record.height, wanted, pixels, shrink())) {
    pixels = turbo_.decode(bytes, size, record.width, record.height, wanted);
  }
  charge(stages_.decode, since);
  return pixels;
}

}  // namespace dp4tl
