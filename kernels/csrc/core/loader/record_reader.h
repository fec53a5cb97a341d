// One record to its views: read, decode, crop, resize, flip, normalise. One object per thread.
#pragma once

#include <utility>

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

class RecordReader {
 public:
  RecordReader(const File& file, const CropSpec& crop, const Output& output, int views, bool exact, const Kernels& kernels)
      : file_(file), spec_(crop), output_(output), exact_(exact), crops_(static_cast<size_t>(views)), crop_decoder_(kernels),
        resizer_(kernels) {}

  // Write view v of record `number` to `to + v * view_stride`. `payload`: its bytes; null: read them. Throws Error.
  void run(int64_t number, const Record& record, const uint8_t* payload, uint32_t epoch, uint8_t* to, size_t view_stride);

  // Spent since the last call.
  Stages take_stages() { return std::exchange(stages_, Stages{}); }

 private:
  void views(int64_t number, const Record& record, const uint8_t* payload, uint32_t epoch, uint8_t* to, size_t view_stride);
  Pixels pixels_of(const Record& record, const uint8_t* payload, const Rect& wanted, int scale);
  int shrink(const Record& record, const Crop& crop) const;

  const File& file_;
  const CropSpec& spec_;
  const Output& output_;
  const bool exact_;  // libjpeg-turbo decodes every JPEG to RGB: smooth chroma, colours converted before the resize
  std::vector<Crop> crops_;
  CropDecoder crop_decoder_;
  TurboDecoder turbo_;
  Resizer resizer_;
  Scratch<uint8_t> bytes_;
  Stages stages_;
};

}  // namespace dp4tl
