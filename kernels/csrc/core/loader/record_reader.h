// Records to their views: read, decode, crop, resize, flip, normalise. One object per thread.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "core/file/beton.h"
#include "core/isa/kernels.h"
#include "core/jpeg/crop_decoder.h"
#include "core/jpeg/turbo.h"
#include "core/pixels/pixels.h"

namespace dp4tl {

// Where the threads' time goes: seconds, summed over threads.
struct Stages {
  double read = 0, decode = 0, resize = 0;
};

// A record that is to become views.
struct RecordJob {
  int64_t number;
  Record record;
  const uint8_t* payload;  // its bytes; null: read them
  uint32_t epoch;
  uint8_t* to;             // view v is written to `to + v * view_stride`
  size_t view_stride;
  int64_t position;        // for the caller
};

// Where jobs come from, and what becomes of them.
class RecordJobs {
 public:
  // The next job; false: there is none, or `wait` is false and it would have to be waited for.
  virtual bool next(RecordJob& job, bool wait) = 0;
  // The views are written; or, if `error` is not empty, they cannot be.
  virtual void done(const RecordJob& job, const std::string& error) = 0;

 protected:
  ~RecordJobs() = default;
};

class RecordReader {
 public:
  RecordReader(const File& file, const CropSpec& crop, const Output& output, int views, bool exact, const Kernels& kernels)
      : file_(file), spec_(crop), output_(output), exact_(exact), crop_decoder_(kernels), resizer_(kernels) {
    for (Place& place : places_) place.crops.resize(static_cast<size_t>(views));
  }

  // All jobs. Ordinary JPEGs are decoded several in turn, so that a job may be done before one that came earlier.
  void run(RecordJobs& jobs);

  // Spent since the last call.
  Stages take_stages() { return std::exchange(stages_, Stages{}); }

 private:
  struct Place {  // of a record on its way
    bool busy = false;
    RecordJob job;
    std::vector<Crop> crops;
    int scale;    // of the views that come next
    Rect wanted;  // what they together need
    const uint8_t* bytes;
    Scratch<uint8_t> own;
  };

  void go_on(int lane, bool decoded, RecordJobs& jobs);
  bool decode_more(int lane, bool decoded);
  bool find_views(Place& place) const;
  void read(Place& place);
  bool begin_decoding(int lane);
  Pixels pixels_of(const Place& place);
  void resize(Place& place, const Pixels& pixels);
  int shrink(const Record& record, const Crop& crop) const;

  const File& file_;
  const CropSpec& spec_;
  const Output& output_;
  const bool exact_;  // libjpeg-turbo decodes every JPEG to RGB: smooth chroma, colours converted before the resize
  Place places_[kLanes];
  CropDecoder crop_decoder_;
  TurboDecoder turbo_;
  Resizer resizer_;
  Stages stages_;
  std::chrono::steady_clock::time_point since_;
};

}  // namespace dp4tl
