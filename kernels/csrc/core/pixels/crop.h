// Which rectangle of an image a view shows. dp4tl_fast/loaders/augment.py is the reference; tests compare the two.
#pragma once

#include <array>
#include <cstdint>

namespace dp4tl {

enum class Transform { kRandomResizedCrop, kCenterCrop, kResize };

struct CropSpec {
  Transform transform = Transform::kCenterCrop;
  std::array<double, 2> scale = {0.08, 1.0};          // share of the area
  std::array<double, 2> aspect = {3.0 / 4, 4.0 / 3};  // width / height
  double crop_ratio = 224.0 / 256;         // centre crop: side as a share of the shorter side
  bool flip = false;                       // with probability 1/2
  uint64_t seed = 0;

  void check() const;  // throws Error
};

struct Crop {
  int x, y, width, height;  // pixels of the stored image
  bool flip;
};

// A pure function of its arguments: Philox keyed by the seed, counter (low, high 32 bits of the record number, epoch,
// view << 16 | block).
// Block t < 10 is the t-th try of the random resized crop, block 16 the flip.
Crop sample_crop(const CropSpec& spec, int width, int height, int64_t record, uint32_t epoch, uint32_t view);

}  // namespace dp4tl
