// Every tool that is used for one JPEG after another, and what it makes of one: the same, whatever it was used for before.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/isa/kernels.h"
#include "core/jpeg/check.h"
#include "core/jpeg/crop_decoder.h"
#include "core/jpeg/index.h"
#include "core/jpeg/shrink.h"
#include "core/jpeg/transcode.h"
#include "tests/jpegs.h"

namespace dp4tl::test {

// The size that the header claims: decoders are only ever called with that of the .beton table. False if there is none, or one that
// takes long. Bytes in a segment may look like a header, and any could be the one that counts.
inline bool claimed_size(const std::vector<uint8_t>& jpeg, int& width, int& height) {
  width = height = 0;
  for (size_t i = 2; i + 9 < jpeg.size(); ++i) {
    if (jpeg[i] != 0xFF || jpeg[i + 1] < 0xC0 || jpeg[i + 1] > 0xCF || jpeg[i + 1] == 0xC4) continue;
    const int h = jpeg[i + 5] << 8 | jpeg[i + 6], w = jpeg[i + 7] << 8 | jpeg[i + 8];
    if (int64_t{w} * h >= 1 << 18) return false;
    if (width == 0) width = w, height = h;
  }
  return width > 0 && height > 0;
}

constexpr const char* kWrongIndex = "AND ITS INDEX IS WRONG";  // at the end of an outcome

struct JpegCase {
  std::vector<uint8_t> jpeg;  // in a block of exactly its size, so that the sanitizer sees the end
  uint8_t crop[4] = {40, 90, 200, 120};  // left, top, width, height in parts of 256
};

// The samples of the crop, rounded outwards.
inline std::string samples(const Pixels& pixels, const Rect& r) {
  std::string all = std::to_string(static_cast<int>(pixels.color));
  const int planes = pixels.color == Color::kYcc ? 3 : 1, channels = pixels.color == Color::kRgb ? 3 : 1;
  for (int i = 0; i < planes; ++i) {
    const Plane& p = pixels.planes[i];
    const int x0 = r.x / p.step_x, x1 = (r.x + r.width + p.step_x - 1) / p.step_x;
    const int y0 = r.y / p.step_y, y1 = (r.y + r.height + p.step_y - 1) / p.step_y;
    for (int y = y0; y < y1; ++y) {
      const uint8_t* line = p.data + (y - p.top) * p.stride + static_cast<ptrdiff_t>(x0 - p.left) * channels;
      all.append(reinterpret_cast<const char*>(line), static_cast<size_t>(x1 - x0) * static_cast<size_t>(channels));
    }
  }
  return all;
}

// The part of the image that the case shows.
inline Rect crop_of(const JpegCase& given, int width, int height) {
  Rect r{given.crop[0] * width / 256, given.crop[1] * height / 256, 0, 0};
  r.width = 1 + given.crop[2] * (width - r.x - 1) / 255;
  r.height = 1 + given.crop[3] * (height - r.y - 1) / 255;
  return r;
}

class JpegTools {
 public:
  explicit JpegTools(const Kernels& kernels) : checker_(kernels), crop_(kernels), shrinker_(kernels) {}

  // Samples, bytes or message of each tool, one after the other.
  std::string outcome(const JpegCase& given) {
    const std::vector<uint8_t>& jpeg = given.jpeg;
    int width, height;
    if (!claimed_size(jpeg, width, height)) return {};
    const Rect r = crop_of(given, width, height);
    std::vector<IndexTask> tasks{task_of(jpeg, 0), task_of(jpeg, 8 + given.crop[0] % 64)};
    const std::vector<std::string> why = checker_.run(tasks);
    const IndexTask& task = tasks[1];
    std::string all = why[0] + why[1];
    const int scale = 1 << (given.crop[1] & 3);
    for (const int shrink : {1, scale}) {
      Pixels pixels;
      all += crop_.decode(jpeg.data(), jpeg.size(), width, height, r, pixels, shrink) ? samples(pixels, r) : "refused";
    }
    all += message_or([&] { return samples(turbo_.decode(jpeg.data(), jpeg.size(), width, height, r), r); });
    all += message_or([&] { return make_sequential(jpeg.data(), jpeg.size()); });
    all += message_or([&] {
      return shrinker_.run(jpeg.data(), jpeg.size(), {width, height}, {(width + 1) / 2, (height + 2) / 3}, 85);
    });
    all += std::to_string(static_cast<int>(task.result));
    if (task.result == IndexTask::Result::kIndexed) {  // then the index is a right one
      const std::vector<uint8_t> indexed = insert_index(task);
      Pixels plain, again;
      const bool before = crop_.decode(jpeg.data(), jpeg.size(), width, height, r, plain);
      const std::string kept = before ? samples(plain, r) : "";
      const bool after = crop_.decode(indexed.data(), indexed.size(), width, height, r, again);
      if (before != after || (after && samples(again, r) != kept)) all += kWrongIndex;
      all.append(indexed.begin(), indexed.end());
    }
    return all;
  }

 private:
  template <typename F>
  static std::string message_or(F&& make) {
    try {
      return make();
    } catch (const Error& error) {
      return error.what();
    }
  }

  JpegChecker checker_;
  CropDecoder crop_;
  TurboDecoder turbo_;
  JpegShrinker shrinker_;
};

}  // namespace dp4tl::test
