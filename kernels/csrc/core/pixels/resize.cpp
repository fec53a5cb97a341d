#include <algorithm>
#include <cmath>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/isa/kernels.h"
#include "core/pixels/pixels.h"

namespace dp4tl {

// Loops over all outputs for each tap, so that the compiler vectorises them.
void Weights::compute(double begin, double length, int low, int high, int origin, int size, bool reverse, int step) {
  const double scale = length / size, smooth = std::max(scale, 1.0 / step);  // half-width after upsampling, in samples
  const double support = step == 1 ? smooth : std::sqrt(1 + smooth * smooth);
  const auto inverse = static_cast<float>(1.0 / support);
  const auto n = static_cast<size_t>(size);
  taps = std::min(static_cast<int>(std::ceil(2 * support - 1e-9)), high - low);  // no triangle covers more samples
  start.resize(n), first_.resize(n), last_.resize(n), offset_.resize(n);
  weight.resize(n * static_cast<size_t>(taps)), share_.resize(weight.size());
  sum_.assign(n, 0.0f);
  rest_.assign(n, INT16_MAX);
  for (int i = 0; i < size; ++i) {
    const double center = begin + (i + 0.5) * scale;
    // All taps stay inside; those outside the triangle weigh nothing. (A negative sum is cut to 0 by either rounding.)
    const int first = std::min(std::max(low, static_cast<int>(center - support + 0.5)), high - taps);
    first_[i] = first;
    last_[i] = std::min({high, static_cast<int>(center + support + 0.5), first + taps});
    offset_[i] = static_cast<float>(first + 0.5 - center);
    start[static_cast<size_t>(reverse ? size - 1 - i : i)] = first - origin;
  }
  for (int k = 0; k < taps; ++k) {
    float* share = &share_[static_cast<size_t>(k) * n];
    for (int i = 0; i < size; ++i) {
      const float triangle = std::max(0.0f, 1.0f - std::abs(offset_[i] + static_cast<float>(k)) * inverse);
      share[i] = first_[i] + k < last_[i] ? triangle : 0.0f;
      sum_[i] += share[i];
    }
  }
  for (int i = 0; i < size; ++i) sum_[i] = INT16_MAX / sum_[i];
  for (int k = 0; k < taps; ++k) {
    const float* share = &share_[static_cast<size_t>(k) * n];
    int16_t* to = &weight[static_cast<size_t>((reverse ? size - 1 : 0) * taps + k)];
    const int step = reverse ? -taps : taps;
    for (int i = 0; i < size; ++i) {
      const int fixed = static_cast<int>(share[i] * sum_[i] + 0.5f);
      to[i * step] = static_cast<int16_t>(fixed);
      rest_[i] -= fixed;
    }
  }
  for (int i = 0; i < size; ++i) {  // the weights sum to one exactly, so that flat areas do not drift: the central one takes the difference
    const int center = std::clamp(static_cast<int>(first_[i] + 0.5f - offset_[i]), first_[i], last_[i] - 1);
    weight[static_cast<size_t>((reverse ? size - 1 - i : i) * taps + center - first_[i])] += static_cast<int16_t>(rest_[i]);
  }
}

namespace {

// The crop in samples of a plane of `step` pixels each: [begin, begin + length), cut at whole samples [low, high). Subsampled chroma
// looks one sample further, as libjpeg's smooth upsampling does.
struct Span {
  double begin, length;
  int low, high;
};

Span span(int begin, int length, int step, bool subsampled, int samples) {
  const int margin = subsampled ? 1 : 0;
  return {static_cast<double>(begin) / step, static_cast<double>(length) / step, std::max(0, begin / step - margin),
          std::min(samples, (begin + length + step - 1) / step + margin)};
}

// Images of so many bytes make batches that leave the caches before anybody reads them. Their stores would wait for the memory to be read
// first, so they are written past the caches (`stream`), a band at a time.
constexpr size_t kStreamed = 1 << 16;

void stream(const uint8_t* from, size_t bytes, uint8_t* to) {
#if defined(__SSE2__)
  const size_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(to) % 16);
  std::memcpy(to, from, head);
  size_t at = head;
  for (; at + 16 <= bytes; at += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
  }
  std::memcpy(to + at, from + at, bytes - at);
  _mm_sfence();  // whoever is told that the image is there must see it
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace

void Resizer::run(const Pixels& pixels, const Crop& crop, const Output& out, void* to) {
  const int planes = pixels.color == Color::kYcc ? 3 : 1;
  const int channels = pixels.color == Color::kRgb ? 3 : 1;
  const Plane& luma = pixels.planes[0];
  const Plane& chroma = pixels.planes[1];
  const bool same_x = planes == 1 || (chroma.step_x == luma.step_x && chroma.left == luma.left);
  const bool same_y = planes == 1 || (chroma.step_y == luma.step_y && chroma.top == luma.top);
  const int sets = same_x && same_y ? 1 : 2;
  Span x[2];
  for (int s = 0; s < sets; ++s) {
    const Plane& p = pixels.planes[s];
    const int finer_x = p.step_x / luma.step_x, finer_y = p.step_y / luma.step_y;  // samples of luma to one of this plane
    x[s] = span(crop.x, crop.width, p.step_x, finer_x > 1, p.width);
    const Span y = span(crop.y, crop.height, p.step_y, finer_y > 1, p.height);
    across_[s].compute(x[s].begin, x[s].length, x[s].low, x[s].high, x[s].low, out.size, crop.flip, finer_x);
    down_[s].compute(y.begin, y.length, y.low, y.high, p.top, out.size, false, finer_y);
  }
  const int widest = (std::max(x[0].high - x[0].low, sets == 2 ? x[1].high - x[1].low : 0) * channels + 15) / 16 * 16;
  int16_t* rows = rows_.at_least(static_cast<size_t>(widest) * kBand);
  int16_t* columns = columns_.at_least(static_cast<size_t>(widest) * kBand * 2);
  const size_t band = static_cast<size_t>(out.size + 7) / 8 * 8 * kBand;  // one channel of a band
  int16_t* bands = bands_.at_least(3 * band);
  const size_t row_bytes = static_cast<size_t>(out.size) * 3 * bytes_of(out.dtype);
  uint8_t* lines = static_cast<size_t>(out.size) * row_bytes >= kStreamed ? lines_.at_least(row_bytes * kBand) : nullptr;

  for (int first = 0; first < out.size; first += kBand) {
    for (int p = 0, together; p < planes; p += together) {  // luma, or pixels; then both planes of chroma
      together = p == 0 ? 1 : 2;
      const int s = p > 0 ? sets - 1 : 0;
      const int n = (x[s].high - x[s].low) * channels;
      for (int t = 0; t < together; ++t) {
        const Plane& plane = pixels.planes[p + t];
        const uint8_t* left = plane.data + static_cast<ptrdiff_t>(x[s].low - plane.left) * channels;
        for (int i = 0; i < kBand; ++i) {
          const int row = std::min(first + i, out.size - 1);  // the last band repeats its last row, which is not stored
          kernels_.blend_rows(left + down_[s].start[row] * plane.stride, plane.stride,
                              &down_[s].weight[static_cast<size_t>(row) * down_[s].taps], down_[s].taps, n, rows + i * widest);
        }
        kernels_.to_columns(rows, widest, n, together * kBand, columns + t * kBand);
      }
      kernels_.blend_columns(columns, channels * together, across_[s].start.data(), across_[s].weight.data(), across_[s].taps,
                             out.size, static_cast<ptrdiff_t>(band), bands + p * band);
    }
    if (pixels.color == Color::kYcc) kernels_.ycc_to_rgb(bands, bands + band, bands + 2 * band, out.size);
    const bool gray = pixels.color == Color::kGray;
    const int count = std::min(kBand, out.size - first);
    uint8_t* place = static_cast<uint8_t*>(to) + static_cast<size_t>(first) * row_bytes;
    kernels_.store_band(bands, gray ? bands : bands + band, gray ? bands : bands + 2 * band, out, count, lines ? lines : place);
    if (lines) stream(lines, static_cast<size_t>(count) * row_bytes, place);
  }
}

}  // namespace dp4tl
