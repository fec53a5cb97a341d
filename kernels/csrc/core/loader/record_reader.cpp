#include "core/loader/record_reader.h"

#include <algorithm>
#include <climits>
#include <exception>

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

void RecordReader::run(RecordJobs& jobs) {
  for (;;) {
    bool busy = std::any_of(places_, places_ + kLanes, [](const Place& p) { return p.busy; });
    for (int lane = 0; lane < kLanes; ++lane) {
      Place& place = places_[lane];
      while (!place.busy && jobs.next(place.job, !busy)) {
        since_ = Clock::now();
        for (size_t v = 0; v < place.crops.size(); ++v) {
          const auto& [number, record, payload, epoch, to, stride, position] = place.job;
          place.crops[v] = sample_crop(spec_, record.width, record.height, number, epoch, static_cast<uint32_t>(v));
        }
        place.scale = 1;
        go_on(lane, false, jobs);
      }
      busy = busy || place.busy;
    }
    if (!busy) return;
    since_ = Clock::now();
    const int lane = crop_decoder_.advance();
    charge(stages_.decode, since_);
    go_on(lane, true, jobs);
  }
}

// Go on with a record until it has to be decoded in its lane, or is done.
void RecordReader::go_on(int lane, bool decoded, RecordJobs& jobs) {
  Place& place = places_[lane];
  std::string error;
  try {
    try {
      place.busy = decode_more(lane, decoded);
      if (place.busy) return;
    } catch (const Error&) {
      file_.check();  // a file that shrank is the better reason
      throw;
    }
    file_.check();
  } catch (const std::exception& e) {
    place.busy = false;
    error = e.what();
  }
  jobs.done(place.job, error);
}

// Decode once for all views of the same scale, which is nearly always all of them. No view depends on another. False: all are written.
bool RecordReader::decode_more(int lane, bool decoded) {
  Place& place = places_[lane];
  if (decoded) {
    const Pixels* pixels = crop_decoder_.pixels(lane);
    resize(place, pixels ? *pixels : pixels_of(place));
  }
  for (; find_views(place); resize(place, pixels_of(place))) {
    read(place);
    if (begin_decoding(lane)) return true;
  }
  return false;
}

// The views of the next scale that has any, and what they together need.
bool RecordReader::find_views(Place& place) const {
  for (; place.scale <= 8; place.scale *= 2) {
    int left = INT_MAX, top = INT_MAX, right = 0, bottom = 0;
    for (const Crop& c : place.crops) {
      if (shrink(place.job.record, c) != place.scale) continue;
      left = std::min(left, c.x);
      top = std::min(top, c.y);
      right = std::max(right, c.x + c.width);
      bottom = std::max(bottom, c.y + c.height);
    }
    place.wanted = {left, top, right - left, bottom - top};
    if (right > 0) return true;
  }
  return false;
}

// How many pixels per side the JPEG decoder merges into a sample: few enough that the resize still shrinks the result.
int RecordReader::shrink(const Record& record, const Crop& crop) const {
  const int side = std::min(crop.width, crop.height);
  int factor = 1;
  if (record.raw || exact_) return factor;
  while (factor < 8 && side / (2 * factor * kReserve) >= output_.size) factor *= 2;
  return factor;
}

void RecordReader::read(Place& place) {
  const Record& record = place.job.record;
  if (!record.raw && is_implausible(record.width, record.height, record.size)) {
    throw Error("claims " + std::to_string(record.width) + " x " + std::to_string(record.height) + " pixels in " +
                std::to_string(record.size) + " bytes");
  }
  // Of raw pixels only the rows that are wanted, in one read.
  const size_t stride = size_t{3} * record.width;
  const size_t skipped = record.raw ? stride * static_cast<size_t>(place.wanted.y) : 0;
  const size_t size = record.raw ? stride * static_cast<size_t>(place.wanted.height) : record.size;
  place.bytes = place.job.payload ? place.job.payload + skipped : file_.view(record.offset + skipped, size);
  if (!place.bytes) {
    uint8_t* own = place.own.at_least(size);
    file_.read(record.offset + skipped, size, own);
    place.bytes = own;
  }
  charge(stages_.read, since_);
}

bool RecordReader::begin_decoding(int lane) {
  const Place& place = places_[lane];
  const Record& record = place.job.record;
  if (record.raw || exact_) return false;
  const bool begun = crop_decoder_.begin(lane, place.bytes, record.size, record.width, record.height, place.wanted, place.scale);
  charge(stages_.decode, since_);
  return begun;
}

// Without the lanes: raw pixels, or what libjpeg-turbo makes of a JPEG.
Pixels RecordReader::pixels_of(const Place& place) {
  const Record& record = place.job.record;
  Pixels pixels;
  if (record.raw) {
    const ptrdiff_t stride = ptrdiff_t{3} * record.width;
    pixels.planes[0] = {place.bytes, stride, 0, place.wanted.y, record.width, record.height, 1, 1};
    return pixels;
  }
  pixels = turbo_.decode(place.bytes, record.size, record.width, record.height, place.wanted);
  charge(stages_.decode, since_);
  return pixels;
}

void RecordReader::resize(Place& place, const Pixels& pixels) {
  for (size_t v = 0; v < place.crops.size(); ++v) {
    if (shrink(place.job.record, place.crops[v]) != place.scale) continue;
    resizer_.run(pixels, place.crops[v], output_, place.job.to + v * place.job.view_stride);
  }
  charge(stages_.resize, since_);
  place.scale *= 2;
}

}  // namespace dp4tl
