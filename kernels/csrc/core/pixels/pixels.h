// Decoded pixels, and the resize of a crop of them into one output image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/pixels/crop.h"

namespace dp4tl {

enum class Color { kRgb, kGray, kYcc };  // kYcc: full-range BT.601, as JFIF has it

// One plane of samples, or interleaved RGB. It holds rows [top, ...) and columns [left, ...) of a (virtual) whole plane that
// has 1 / step_x by 1 / step_y of the image's samples; sample (i, j) is centred in its step_x x step_y pixels.
struct Plane {
  const uint8_t* data = nullptr;  // sample (left, top)
  ptrdiff_t stride = 0;           // bytes from row to row
  int left = 0, top = 0;
  int width = 0, height = 0;  // samples of the whole plane
  int step_x = 1, step_y = 1;
};

struct Pixels {
  Color color = Color::kRgb;
  Plane planes[3];  // kRgb: planes[0], 3 bytes per sample; kGray: planes[0]; kYcc: Y, Cb, Cr
};

enum class DType { kUint8, kFloat16, kBfloat16, kFloat32 };

inline size_t bytes_of(DType dtype) { return dtype == DType::kUint8 ? 1 : dtype == DType::kFloat32 ? 4 : 2; }

// How a resized sample x in 0..255 is stored: as it is, or, as a float, as x * scale[c] + bias[c].
struct Output {
  int size = 224;  // pixels per side
  DType dtype = DType::kUint8;
  float scale[3] = {1, 1, 1}, bias[3] = {0, 0, 0};
};

// Memory that a thread reuses from image to image; it never shrinks.
template <typename T>
class Scratch {
 public:
  T* at_least(size_t n) {
    if (data_.size() < n) data_.resize(n);
    return data_.data();
  }

 private:
  std::vector<T> data_;
};

// The inputs of every output sample and their weights: `taps` weights in Q15, zero-padded, that sum to 32767.
struct Weights {
  int taps = 0;
  std::vector<int> start;       // [size] first input sample, relative to the plane's first held sample
  std::vector<int16_t> weight;  // [size][taps]

  // PIL's and torchvision's antialiased bilinear: a triangle of half-width max(1, scale) around the output's centre, cut at the
  // samples [low, high). `begin` and `length` are the crop in samples and may be fractions; `origin` is where the plane's memory begins.
  // A plane subsampled by `step` is weighed as if it had been upsampled linearly first: that triangle after the other one is
  // close to a triangle of the sum of their variances.
  void compute(double begin, double length, int low, int high, int origin, int size, bool reverse, int step = 1);

 private:
  std::vector<float> share_, sum_, offset_;
  std::vector<int> first_, last_, rest_;
};

struct Kernels;

// Bilinear resize with antialiasing, flip, colour conversion and normalisation in one pass over bands of 16 output rows.
class Resizer {
 public:
  explicit Resizer(const Kernels& kernels) : kernels_(kernels) {}

  // Write `out.size` x `out.size` x 3 samples, channels last, to `to`. The planes must hold the crop.
  void run(const Pixels& pixels, const Crop& crop, const Output& out, void* to);

 private:
  const Kernels& kernels_;
  Weights across_[2], down_[2];  // for full planes, and for subsampled chroma
  Scratch<int16_t> rows_, columns_, bands_;
  Scratch<uint8_t> lines_;
};

}  // namespace dp4tl
