// The row primitives in plain C++: what every instruction set computes, and what handles the columns that fill no vector.
// Internal to rows*.cpp, which list in a table what each set has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/rows/rows.h"

namespace dp4tl {
namespace rows {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Best kNanRow = {std::numeric_limits<float>::quiet_NaN(), kNan};

// Rounding in float32 of product + offset, here and where it is computed again, and of the bounds: below 4 * 2^-24 of both.
constexpr float kSumRounding = 0x1p-22f;
// Hardware products of bfloat16 take subnormal numbers for zero.
constexpr float kUnderflow = 1e-30f;

struct F16 {
  static constexpr int16_t kInfinityBits = 0x7c00;
  uint16_t bits;
};
struct Bf16 {
  static constexpr int16_t kInfinityBits = 0x7f80;
  uint16_t bits;
};

// Rounding of a product to T. One rounded to bfloat16 is off by up to 2^-8 of the exact one; measured from the rounded one
// a little more.
template <class T> inline constexpr float kRounding = kSumRounding;
template <> inline constexpr float kRounding<Bf16> = 1.01f / 256;

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float x) { return x; }
inline float widen(Bf16 x) { return from_bits(uint32_t{x.bits} << 16); }

inline float widen(F16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);     // infinity, NaN
  if (rest < 0x400) return std::copysign(static_cast<float>(rest) * 0x1p-24f, from_bits(sign));  // zero, subnormal
  return from_bits(sign | ((rest << 13) + (112u << 23)));  // exponent bias 15 -> 127
}

// Interval that holds the score of one column as it would be computed again.
struct Bounds { float low, high; };
template <class T>
Bounds bounds(T product, float offset, float error, float norm) {
  const float p = widen(product);
  const float slack = kRounding<T> * std::fabs(p) + (kSumRounding * std::fabs(offset) + (norm * error + kUnderflow));
  return {p + offset - slack, p + offset + slack};
}

inline int64_t every_column(int64_t n, int32_t* out) {
  for (int64_t k = 0; k < n; ++k) out[k] = static_cast<int32_t>(k);
  return n;
}

// Continue at column `k` from `best`.
template <class T>
Best finish(const T* row, const float* offset, int64_t k, int64_t n, Best best) {
  for (; k < n; ++k) {
    const float x = widen(row[k]) + (offset ? offset[k] : 0.0f);
    if (!(x <= best.value)) {  // larger, or NaN
      if (std::isnan(x)) return kNanRow;
      best = {x, k};
    }
  }
  return best;
}

template <class T>
T value_at(const T* row, const float*, int64_t k) { return row[k]; }
inline float value_at(const float* row, const float* offset, int64_t k) { return offset ? row[k] + offset[k] : row[k]; }

// The bits as an integer in order of the value: NaNs lie beyond the infinity of their sign, and -0 just below 0.
template <class T>
int16_t in_order(T x) {
  const auto bits = static_cast<int16_t>(x.bits);
  return static_cast<int16_t>(bits ^ (bits >> 15 & 0x7fff));
}
inline int32_t in_order(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 & 0x7fffffff);
}

template <class T> inline constexpr int16_t kInfinityInOrder = T::kInfinityBits;
template <> inline constexpr int32_t kInfinityInOrder<float> = 0x7f800000;

constexpr int64_t kBlock = 64;  // columns that are searched only if one of them is what is sought

// The largest value first, then its first column, in loops that the compiler vectorises: without a branch for each new maximum.
template <class T>
Best argmax_baseline(const void* data, const float* offset, int64_t n) {
  using Key = decltype(in_order(T{}));
  const T* row = static_cast<const T*>(data);
  Key top = std::numeric_limits<Key>::min(), bottom = std::numeric_limits<Key>::max();
  for (int64_t k = 0; k < n; ++k) {
    const Key key = in_order(value_at(row, offset, k));
    top = std::max(top, key), bottom = std::min(bottom, key);
  }
  if (top > kInfinityInOrder<T> || bottom < ~kInfinityInOrder<T>) return kNanRow;
  if (top == 0) top = -1;  // zero has two signs
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t stop = std::min(first + kBlock, n);
    Key found = 0;
    for (int64_t k = first; k < stop; ++k) found |= in_order(value_at(row, offset, k)) >= top;
    for (int64_t k = first; found && k < stop; ++k) {
      if (in_order(value_at(row, offset, k)) >= top) return finish(row, offset, k, k + 1, {-kInfinity, k});
    }
  }
  return finish(row, offset, 0, n, {-kInfinity, 0});  // another thread has changed the row meanwhile
}

template <class T>
void add_baseline(const void* data, float* sum, int64_t n) {
  const T* row = static_cast<const T*>(data);
  for (int64_t i = 0; i < n; ++i) sum[i] += widen(row[i]);
}

// In lanes of their own, so that no step waits for the one before it, and the compiler may take several at once.
constexpr int64_t kLanes = 16;

template <class T>
int64_t near_best_baseline(const void* products, const float* offset, const float* error, float norm, int64_t n, float* high,
                           int32_t* out) {
  const T* row = static_cast<const T*>(products);
  float lows[kLanes], threshold = -kInfinity;
  int32_t nan[kLanes] = {};
  std::fill(lows, lows + kLanes, -kInfinity);
  const auto look = [&](int64_t k, int64_t lane) {
    const Bounds score = bounds(row[k], offset[k], error[k], norm);
    high[k] = score.high;
    nan[lane] |= score.low != score.low;
    lows[lane] = score.low > lows[lane] ? score.low : lows[lane];
  };
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) look(k + lane, lane);
  for (int64_t k = whole; k < n; ++k) look(k, k - whole);
  int32_t any = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) any |= nan[lane], threshold = std::max(threshold, lows[lane]);
  if (any || !std::isfinite(threshold)) return every_column(n, out);
  int64_t count = 0;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t stop = std::min(first + kBlock, n);
    int32_t near = 0;
    for (int64_t k = first; k < stop; ++k) near |= high[k] >= threshold;
    for (int64_t k = first; near && k < stop; ++k)
      if (high[k] >= threshold) out[count++] = static_cast<int32_t>(k);
  }
  return count;
}

template <class T>
float dot_baseline(const void* left, const void* right, int64_t n) {
  const T *a = static_cast<const T*>(left), *b = static_cast<const T*>(right);
  float sums[kLanes] = {}, all = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += widen(a[i + j]) * widen(b[i + j]);
  for (int64_t step = kLanes / 2; step; step /= 2)
    for (int64_t j = 0; j < step; ++j) sums[j] += sums[j + step];
  for (; i < n; ++i) all += widen(a[i]) * widen(b[i]);
  return sums[0] + all;
}

struct Table {
  RowArgmax argmax[3];  // by Scalar: f32, f16, bf16
  Dot dot[3];
  AddRow add[3];
  NearBest near_best[3];  // none for f16, which no product is taken in
};

#if defined(__x86_64__)
extern const Table kAvx2, kAvx512;
#endif

}  // namespace rows
}  // namespace dp4tl
