#include "core/pixels/crop.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.h"
#include "core/pixels/philox.h"

namespace dp4tl {
namespace {

constexpr uint32_t kTries = 10, kFlipBlock = 16;

Philox4 draw(uint64_t seed, int64_t record, uint32_t epoch, uint32_t view, uint32_t block) {
  const auto i = static_cast<uint64_t>(record);
  return philox4x32({static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), epoch, view << 16 | block}, seed);
}

double uniform(uint32_t word, double low, double high) { return low + (high - low) * (word * 0x1p-32); }

// torchvision's RandomResizedCrop: ten tries at area and aspect, then the largest centred crop of an allowed aspect.
Crop random_resized(const CropSpec& spec, int width, int height, int64_t record, uint32_t epoch, uint32_t view) {
  const double area = static_cast<double>(width) * height;
  const double log_low = std::log(spec.aspect[0]), log_high = std::log(spec.aspect[1]);
  for (uint32_t t = 0; t < kTries; ++t) {
    const Philox4 r = draw(spec.seed, record, epoch, view, t);
    const double target = area * uniform(r[0], spec.scale[0], spec.scale[1]);
    const double aspect = std::exp(uniform(r[1], log_low, log_high));
    const double w = std::nearbyint(std::sqrt(target * aspect)), h = std::nearbyint(std::sqrt(target / aspect));
    if (w < 1 || h < 1 || w > width || h > height) continue;
    const int cw = static_cast<int>(w), ch = static_cast<int>(h);
    const auto below = [](uint32_t word, int n) { return static_cast<int>((uint64_t{word} * static_cast<uint64_t>(n)) >> 32); };
    return {below(r[3], width - cw + 1), below(r[2], height - ch + 1), cw, ch, false};
  }
  int cw = width, ch = height;
  const double ratio = static_cast<double>(width) / height;
  if (ratio < spec.aspect[0]) ch = static_cast<int>(std::nearbyint(width / spec.aspect[0]));
  if (ratio > spec.aspect[1]) cw = static_cast<int>(std::nearbyint(height * spec.aspect[1]));
  cw = std::clamp(cw, 1, width);
  ch = std::clamp(ch, 1, height);
  return {(width - cw) / 2, (height - ch) / 2, cw, ch, false};
}

}  // namespace

void CropSpec::check() const {
  const auto pair = [](const char* name, const std::array<double, 2>& range, double most) {
    if (range[0] > 0 && range[0] <= range[1] && range[1] <= most) return;
    throw Error(std::string(name) + " = (" + std::to_string(range[0]) + ", " + std::to_string(range[1]) +
                "), but it must be an increasing pair above 0" + (std::isinf(most) ? "" : " and at most " + std::to_string(most)));
  };
  pair("scale", scale, 1);
  pair("aspect", aspect, std::numeric_limits<double>::infinity());
  if (!(crop_ratio > 0 && crop_ratio <= 1)) {
    throw Error("crop_ratio = " + std::to_string(crop_ratio) + ", but it must be above 0 and at most 1");
  }
}

Crop sample_crop(const CropSpec& spec, int width, int height, int64_t record, uint32_t epoch, uint32_t view) {
  Crop crop{0, 0, width, height, false};
  if (spec.transform == Transform::kRandomResizedCrop) {
    crop = random_resized(spec, width, height, record, epoch, view);
  } else if (spec.transform == Transform::kCenterCrop) {
    const int side = std::max(1, static_cast<int>(spec.crop_ratio * std::min(width, height)));
    crop = {(width - side) / 2, (height - side) / 2, side, side, false};
  }
  crop.flip = spec.flip && draw(spec.seed, record, epoch, view, kFlipBlock)[0] >> 31;
  return crop;
}

}  // namespace dp4tl
