// Each instruction set's pixel kernels against plain loops that define what they compute: equal bits, at every awkward length.
// Those that decode JPEGs have tests of their own (test_jpeg.cpp, test_jpeg_blocks.cpp).
#include "core/isa/kernels.h"

#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "tests/check.h"

using namespace dp4tl;

namespace {

int saturate(int x) { return x < INT16_MIN ? INT16_MIN : x > INT16_MAX ? INT16_MAX : x; }
int product(int a, int b) { return (a * b + (1 << 14)) >> 15; }  // Q15, rounded
constexpr int kNarrow = 12;  // more taps are summed in 32 bits before they are rounded

std::vector<int16_t> weights(std::mt19937& random, int taps) {  // not negative, 32767 in sum
  std::vector<int16_t> w(static_cast<size_t>(taps));
  int rest = INT16_MAX;
  for (int k = 0; k + 1 < taps; ++k) rest -= w[k] = static_cast<int16_t>(random() % static_cast<unsigned>(2 * rest / (taps - k) + 1));
  w[taps - 1] = static_cast<int16_t>(rest);
  return w;
}

// The sum of taps, in either rounding; `q7` shifts samples of 8 bits up.
int blend(const std::vector<int>& samples, const int16_t* weight, bool q7) {
  const int taps = static_cast<int>(samples.size());
  int sum = 0;
  for (int k = 0; k < taps; ++k) {
    if (taps > kNarrow) {
      sum += samples[k] * weight[k];
    } else {
      sum = saturate(sum + product(q7 ? samples[k] * 128 : samples[k], weight[k]));
    }
  }
  if (taps <= kNarrow) return sum;
  return q7 ? (sum + (1 << 7)) >> 8 : (sum + (1 << 14)) >> 15;
}

void rows_blend(const Kernels& kernels, std::mt19937& random) {
  for (int taps : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 40}) {
    for (int n : {1, 2, 7, 8, 15, 16, 17, 31, 48, 63, 65, 200}) {
      const int stride = n + static_cast<int>(random() % 5);
      // Exactly as long as may be read: the address sanitizer sees a byte too far.
      std::vector<uint8_t> from(static_cast<size_t>((taps - 1) * stride + n));
      for (uint8_t& x : from) x = static_cast<uint8_t>(random() % 4 ? random() : 255);
      const std::vector<int16_t> w = weights(random, taps);
      std::vector<int16_t> to(static_cast<size_t>((n + 15) / 16 * 16));
      kernels.blend_rows(from.data(), stride, w.data(), taps, n, to.data());
      for (int x = 0; x < n; ++x) {
        std::vector<int> samples;
        for (int k = 0; k < taps; ++k) samples.push_back(from[static_cast<size_t>(k * stride + x)]);
        const int expected = blend(samples, w.data(), true);
        CHECK(to[x] == expected, "%s: blend_rows, taps %d n %d x %d: %d, expected %d", name_of(kernels.isa), taps, n, x, to[x], expected);
      }
    }
  }
}

void columns_blend(const Kernels& kernels, std::mt19937& random) {
  for (int n : {8, 16, 40}) {  // to_columns turns blocks of 16 x 8
    std::vector<int16_t> rows(static_cast<size_t>(n * kBand)), columns(rows.size());
    for (int16_t& x : rows) x = static_cast<int16_t>(random() % 32641);
    for (int step : {kBand, 2 * kBand}) {
      columns.assign(static_cast<size_t>(n * step), -1);
      kernels.to_columns(rows.data(), n, n, step, columns.data());
      for (int at = 0; at < n * step; ++at) {
        const int x = at / step, i = at % step, expected = i < kBand ? rows[i * n + x] : -1;
        CHECK(columns[at] == expected, "%s: to_columns, x %d row %d", name_of(kernels.isa), x, i);
      }
    }
  }
  for (int channels : {1, 2, 3}) {
    for (int taps : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 40}) {
      const int n = taps + 9, size = 11, plane = size * kBand + 8;
      std::vector<int16_t> columns(static_cast<size_t>(n * channels * kBand)), weight, to(static_cast<size_t>(channels * plane), -1);
      for (int16_t& x : columns) x = static_cast<int16_t>(random() % 32641);
      std::vector<int> start;
      for (int x = 0; x < size; ++x) {
        start.push_back(static_cast<int>(random() % 10));
        const std::vector<int16_t> w = weights(random, taps);
        weight.insert(weight.end(), w.begin(), w.end());
      }
      kernels.blend_columns(columns.data(), channels, start.data(), weight.data(), taps, size, plane, to.data());
      for (int at = 0; at < channels * plane; ++at) {
        const int channel = at / plane, x = at % plane / kBand;
        int expected = -1;
        if (x < size) {
          std::vector<int> samples;
          for (int k = 0; k < taps; ++k) samples.push_back(columns[((start[x] + k) * channels + channel) * kBand + at % plane % kBand]);
          expected = blend(samples, &weight[x * taps], false);
        }
        CHECK(to[at] == expected, "%s: blend_columns, taps %d channel %d x %d: %d, expected %d", name_of(kernels.isa), taps, channel, x, to[at], expected);
      }
    }
  }
}

void colours(const Kernels& kernels, std::mt19937& random) {
  const int n = 200;
  std::vector<int16_t> planes[3], before[3];
  for (int p = 0; p < 3; ++p) {
    for (int i = 0; i < n * kBand; ++i) planes[p].push_back(static_cast<int16_t>(random() % 32641));
    before[p] = planes[p];
  }
  kernels.ycc_to_rgb(planes[0].data(), planes[1].data(), planes[2].data(), n);
  const auto within = [](int x) { return x < 0 ? 0 : x > 255 * 128 ? 255 * 128 : x; };
  for (int i = 0; i < n * kBand; ++i) {
    const int l = before[0][i], u = before[1][i] - 128 * 128, v = before[2][i] - 128 * 128;
    const int rgb[3] = {within(l + product(v, 13173) + v),
                        within(l - product(u, 11277) - product(v, 23401)),
                        within(l + product(u, 25297) + u)};
    for (int c = 0; c < 3; ++c) CHECK(planes[c][i] == rgb[c], "%s: ycc_to_rgb, channel %d of %d %d %d", name_of(kernels.isa), c, l, u, v);
    // JFIF's formula itself, within the rounding of two products.
    const double exact[3] = {l + 1.402 * v, l - 0.344136 * u - 0.714136 * v, l + 1.772 * u};
    for (int c = 0; c < 3; ++c) CHECK(std::abs(within(static_cast<int>(std::lround(exact[c]))) - rgb[c]) <= 2, "%s: ycc_to_rgb, channel %d of %d %d %d", name_of(kernels.isa), c, l, u, v);
  }
}

// x rounded to nearest, ties to even, with `fraction` bits behind the leading one and exponents of at least `lowest`.
double rounded(float x, int fraction, int lowest) {
  if (x == 0) return x;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x), lowest) - fraction);
  return std::nearbyint(x / unit) * unit;
}

double widen_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 31 ? INFINITY : exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits >> 15 ? -magnitude : magnitude;
}

double stored(DType dtype, const uint8_t* at) {
  uint16_t bits;
  uint32_t wide;
  float x;
  std::memcpy(&bits, at, dtype == DType::kUint8 ? 1 : 2);
  switch (dtype) {
    case DType::kUint8: return *at;
    case DType::kFloat16: return widen_half(bits);
    case DType::kBfloat16: wide = static_cast<uint32_t>(bits) << 16; break;
    default: std::memcpy(&wide, at, 4);
  }
  std::memcpy(&x, &wide, 4);
  return x;
}

double wanted(const Output& out, int q7, int channel) {
  const float x = static_cast<float>(q7) * (out.scale[channel] * (1.0f / 128)) + out.bias[channel];
  switch (out.dtype) {
    case DType::kUint8: return (q7 + 64) >> 7;
    case DType::kFloat16: {
      const double half = rounded(x, 10, -14);
      return std::abs(half) > 65504 ? std::copysign(INFINITY, half) : half;
    }
    case DType::kBfloat16: return rounded(x, 7, -126);
    default: return x;
  }
}

void outputs(const Kernels& kernels, std::mt19937& random) {
  // As the loader has them; ones that make half-precision subnormals, zeros and ties; and ones that overflow it.
  const float factors[3][2] = {{0.0171247f, -2.117904f}, {1e-7f, -1e-6f}, {700.0f, -60000.0f}};
  for (DType dtype : {DType::kUint8, DType::kFloat16, DType::kBfloat16, DType::kFloat32}) {
    for (const auto& factor : factors) {
      for (int size : {1, 2, 7, 8, 9, 16, 37}) {
        for (int rows : {1, 7, 8, 15, 16}) {
          Output out;
          out.size = size, out.dtype = dtype;
          for (int c = 0; c < 3; ++c) out.scale[c] = factor[0] * (1 + c), out.bias[c] = factor[1];
          std::vector<int16_t> planes[3];
          for (auto& plane : planes) {
            plane.resize(static_cast<size_t>((size + 7) / 8 * 8 * kBand));
            for (int16_t& x : plane) x = static_cast<int16_t>(random() % 32641);
          }
          const size_t bytes = bytes_of(dtype);
          std::vector<uint8_t> to(static_cast<size_t>(rows) * size * 3 * bytes);
          kernels.store_band(planes[0].data(), planes[1].data(), planes[2].data(), out, rows, to.data());
          for (int at = 0; at < rows * size * 3; ++at) {
            const int c = at % 3, x = at / 3 % size, row = at / 3 / size, q7 = planes[c][x * kBand + row];
            const double got = stored(dtype, &to[at * bytes]), expected = wanted(out, q7, c);
            CHECK(got == expected && std::signbit(got) == std::signbit(expected), "%s: store_band, dtype %d size %d rows %d x %d row %d: %g, expected %g",
                  name_of(kernels.isa), static_cast<int>(dtype), size, rows, x, row, got, expected);
          }
        }
      }
    }
  }
}

// Large images are written past the caches: to any address, all of their bytes and no others.
void large_images(const Kernels& kernels, std::mt19937& random) {
  std::vector<uint8_t> source(40 * 40);
  for (uint8_t& x : source) x = static_cast<uint8_t>(random());
  Pixels pixels;
  pixels.color = Color::kGray;
  pixels.planes[0].data = source.data(), pixels.planes[0].stride = 40, pixels.planes[0].width = pixels.planes[0].height = 40;
  for (const auto& [dtype, size] : {std::pair(DType::kUint8, 149), std::pair(DType::kFloat16, 107), std::pair(DType::kFloat32, 224)}) {
    Output out;
    out.size = size, out.dtype = dtype;
    const size_t bytes = static_cast<size_t>(size) * size * 3 * bytes_of(dtype), step = dtype == DType::kUint8 ? 1 : bytes_of(dtype);
    std::vector<uint8_t> first;
    for (size_t at = 0; at < 16; at += step) {
      std::vector<uint8_t> to(at + bytes + 16, static_cast<uint8_t>(at));
      Resizer(kernels).run(pixels, {3, 2, 31, 33, false}, out, to.data() + at);
      const std::vector<uint8_t> image(to.begin() + static_cast<ptrdiff_t>(at), to.end() - 16);
      if (first.empty()) first = image;
      CHECK(image == first, "%s: an image of %d pixels at byte %zu differs", name_of(kernels.isa), size, at);
      for (size_t i = 0; i < to.size(); ++i) CHECK((i >= at && i < at + bytes) || to[i] == at, "%s: byte %zu beside an image", name_of(kernels.isa), i);
    }
  }
}

}  // namespace

int main() {
  for (const Isa isa : supported_isas()) {
    const Kernels& kernels = kernels_for(isa);
    CHECK(isa == kernels.isa);
    std::mt19937 random(1);
    rows_blend(kernels, random);
    columns_blend(kernels, random);
    colours(kernels, random);
    outputs(kernels, random);
    large_images(kernels, random);
    std::printf("%s: good\n", name_of(kernels.isa));
  }
}
