#include "core/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own _mm512_undefined_epi32 and _ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#define DP4TL_AVX2 __attribute__((target("avx2,fma,f16c")))
#define DP4TL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))
#endif

namespace dp4tl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Best kNanRow = {std::numeric_limits<float>::quiet_NaN(), kNan};

// A product rounded to bfloat16 is off by up to 2^-8 of the exact one; measured from the rounded one a little more.
constexpr float kRounding = 1.01f / 256;
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

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float widen(float x) { return x; }
float widen(Bf16 x) { return from_bits(uint32_t{x.bits} << 16); }

float widen(F16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);     // infinity, NaN
  if (rest < 0x400) return std::copysign(static_cast<float>(rest) * 0x1p-24f, from_bits(sign));  // zero, subnormal
  return from_bits(sign | ((rest << 13) + (112u << 23)));  // exponent bias 15 -> 127
}

// Interval that holds the exact score of one column of screened products.
struct Bounds { float low, high; };
Bounds bounds(Bf16 product, float offset, float error, float norm) {
  const float p = widen(product), slack = kRounding * std::fabs(p) + norm * error + kUnderflow;
  return {p + offset - slack, p + offset + slack};
}

int64_t every_column(int64_t n, int32_t* out) {
  for (int64_t k = 0; k < n; ++k) out[k] = static_cast<int32_t>(k);
  return n;
}

// ---- baseline ------------------------------------------------------------------------------------------------------

// Continue at column `k` from `best`: the whole row in the baseline, the last columns elsewhere.
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
Best argmax_baseline(const void* row, const float* offset, int64_t n) {
  return finish(static_cast<const T*>(row), offset, 0, n, {-kInfinity, 0});
}

template <class T>
void add_baseline(const void* data, float* sum, int64_t n) {
  const T* row = static_cast<const T*>(data);
  for (int64_t i = 0; i < n; ++i) sum[i] += widen(row[i]);
}

// The largest of a row of 16-bit floats, from the largest key (see `keys` below).
template <class T>
struct Extreme {
  uint16_t mask, bits;  // the columns whose (bits & mask) are these hold it: zero has two signs
  float value;
  explicit Extreme(int16_t high) {
    bits = static_cast<uint16_t>(high ^ (high >> 15 & 0x7fff));
    mask = (bits & 0x7fff) == 0 ? 0x7fff : 0xffff;
    bits &= mask;
    value = widen(T{bits});
  }
};

#if defined(__x86_64__)
// ---- AVX2: 8 columns at a time, 32 a step --------------------------------------------------------------------------

DP4TL_AVX2 inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
DP4TL_AVX2 inline __m256 load8(const F16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
DP4TL_AVX2 inline __m256 load8(const Bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}

DP4TL_AVX2 Best argmax_avx2(const void* data, const float* offset, int64_t n) {
  const float* row = static_cast<const float*>(data);
  Best best = {-kInfinity, 0};
  __m256 top = _mm256_set1_ps(best.value);
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
    __m256 larger = _mm256_setzero_ps();
    for (int64_t j = k; j < k + 32; j += 8) {
      __m256 x = load8(row + j);
      if (offset) x = _mm256_add_ps(x, _mm256_loadu_ps(offset + j));
      larger = _mm256_or_ps(larger, _mm256_cmp_ps(x, top, _CMP_NLE_UQ));  // larger, or NaN
    }
    if (_mm256_movemask_ps(larger) == 0) continue;
    best = finish(row, offset, k, k + 32, best);  // rare, about log n times a row
    if (best.index == kNan) return best;
    top = _mm256_set1_ps(best.value);
  }
  return finish(row, offset, k, n, best);
}

// 16-bit floats in order of value: as integers, with the magnitude bits of negative ones flipped. Then the largest and
// smallest element are integer operations on twice as many columns, and NaNs are the keys beyond the infinities'.
DP4TL_AVX2 inline __m256i keys(__m256i bits) {
  return _mm256_xor_si256(bits, _mm256_and_si256(_mm256_srai_epi16(bits, 15), _mm256_set1_epi16(0x7fff)));
}
DP4TL_AVX2 inline int16_t largest(__m256i keys) {
  const __m128i x = _mm_max_epi16(_mm256_castsi256_si128(keys), _mm256_extracti128_si256(keys, 1));
  const __m128i reversed = _mm_sub_epi16(_mm_set1_epi16(0x7fff), x);  // unsigned, largest first
  return static_cast<int16_t>(0x7fff - _mm_extract_epi16(_mm_minpos_epu16(reversed), 0));
}

template <class T>
DP4TL_AVX2 Best argmax16_avx2(const void* data, const float*, int64_t n) {
  if (n < 16) return argmax_baseline<T>(data, nullptr, n);
  const T* row = static_cast<const T*>(data);
  const auto load = [&](int64_t k) DP4TL_AVX2 { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + k)); };
  __m256i high = keys(load(0)), low = high;
  for (int64_t k = 16; k < n; k += 16) {  // the last vector overlaps the one before
    const __m256i x = keys(load(std::min(k, n - 16)));
    high = _mm256_max_epi16(high, x);
    low = _mm256_min_epi16(low, x);
  }
  const __m256i beyond = _mm256_or_si256(_mm256_cmpgt_epi16(high, _mm256_set1_epi16(T::kInfinityBits)),
                                         _mm256_cmpgt_epi16(_mm256_set1_epi16(~T::kInfinityBits), low));
  if (_mm256_movemask_epi8(beyond)) return kNanRow;
  const Extreme<T> top(largest(high));
  const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(top.mask));
  const __m256i bits = _mm256_set1_epi16(static_cast<int16_t>(top.bits));
  for (int64_t k = 0;; k = std::min(k + 16, n - 16)) {
    const __m256i equal = _mm256_cmpeq_epi16(_mm256_and_si256(load(k), mask), bits);
    if (const unsigned found = _mm256_movemask_epi8(equal)) return {top.value, k + __builtin_ctz(found) / 2};
  }
}

template <class T>
DP4TL_AVX2 void add_avx2(const void* data, float* sum, int64_t n) {
  const T* row = static_cast<const T*>(data);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(sum + i, _mm256_add_ps(_mm256_loadu_ps(sum + i), load8(row + i)));
  add_baseline<T>(row + i, sum + i, n - i);
}

// ---- AVX-512: 16 columns at a time, 64 a step ----------------------------------------------------------------------

DP4TL_AVX512 inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }
DP4TL_AVX512 inline __m512 load16(const F16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
DP4TL_AVX512 inline __m512 load16(const Bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}

DP4TL_AVX512 Best argmax_avx512(const void* data, const float* offset, int64_t n) {
  const float* row = static_cast<const float*>(data);
  Best best = {-kInfinity, 0};
  __m512 top = _mm512_set1_ps(best.value);
  int64_t k = 0;
  for (; k + 64 <= n; k += 64) {
    __m512 x[4];
    __mmask16 larger[4];
    for (int j = 0; j < 4; ++j) {
      x[j] = load16(row + k + 16 * j);
      if (offset) x[j] = _mm512_add_ps(x[j], _mm512_loadu_ps(offset + k + 16 * j));
      larger[j] = _mm512_cmp_ps_mask(x[j], top, _CMP_NLE_UQ);  // larger, or NaN
    }
    if ((larger[0] | larger[1] | larger[2] | larger[3]) == 0) continue;
    for (int j = 0; j < 4; ++j) {  // rare, about log n times a row
      if (_mm512_cmp_ps_mask(x[j], top, _CMP_NLE_UQ) == 0) continue;
      if (_mm512_cmp_ps_mask(x[j], x[j], _CMP_UNORD_Q)) return kNanRow;
      best.value = _mm512_reduce_max_ps(x[j]);
      top = _mm512_set1_ps(best.value);
      best.index = k + 16 * j + __builtin_ctz(_mm512_cmp_ps_mask(x[j], top, _CMP_EQ_OQ));
    }
  }
  return finish(row, offset, k, n, best);
}

DP4TL_AVX512 inline __m512i keys(__m512i bits) {  // bits ^ (sign & 0x7fff)
  return _mm512_ternarylogic_epi32(bits, _mm512_srai_epi16(bits, 15), _mm512_set1_epi16(0x7fff), 0x78);
}

template <class T>
DP4TL_AVX512 Best argmax16_avx512(const void* data, const float*, int64_t n) {
  if (n < 32) return argmax_baseline<T>(data, nullptr, n);
  const T* row = static_cast<const T*>(data);
  const auto load = [&](int64_t k) DP4TL_AVX512 { return _mm512_loadu_si512(row + k); };
  __m512i high = keys(load(0)), low = high;
  for (int64_t k = 32; k < n; k += 32) {  // the last vector overlaps the one before
    const __m512i x = keys(load(std::min(k, n - 32)));
    high = _mm512_max_epi16(high, x);
    low = _mm512_min_epi16(low, x);
  }
  if (_mm512_cmpgt_epi16_mask(high, _mm512_set1_epi16(T::kInfinityBits)) |
      _mm512_cmplt_epi16_mask(low, _mm512_set1_epi16(~T::kInfinityBits))) return kNanRow;
  const Extreme<T> top(largest(_mm256_max_epi16(_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64(high, 1))));
  const __m512i mask = _mm512_set1_epi16(static_cast<int16_t>(top.mask));
  const __m512i bits = _mm512_set1_epi16(static_cast<int16_t>(top.bits));
  for (int64_t k = 0;; k = std::min(k + 32, n - 32)) {
    const __mmask32 equal = _mm512_cmpeq_epi16_mask(_mm512_and_si512(load(k), mask), bits);
    if (equal) return {top.value, k + __builtin_ctz(equal)};
  }
}

DP4TL_AVX512 int64_t near_best_avx512(const Bf16* row, const float* offset, const float* error, float norm, int64_t n,
                                      float* high, int32_t* out) {
  const __m512 rounding = _mm512_set1_ps(kRounding), norms = _mm512_set1_ps(norm);
  const __m512 underflow = _mm512_set1_ps(kUnderflow);
  __m512 top = _mm512_set1_ps(-kInfinity);
  __mmask16 nan = 0;
  const int64_t whole = n / 16 * 16;
  for (int64_t k = 0; k < whole; k += 16) {
    const __m512 product = load16(row + k), score = _mm512_add_ps(product, _mm512_loadu_ps(offset + k));
    __m512 slack = _mm512_fmadd_ps(norms, _mm512_loadu_ps(error + k), underflow);
    slack = _mm512_fmadd_ps(rounding, _mm512_abs_ps(product), slack);
    const __m512 low = _mm512_sub_ps(score, slack);
    _mm512_storeu_ps(high + k, _mm512_add_ps(score, slack));
    nan |= _mm512_cmp_ps_mask(low, low, _CMP_UNORD_Q);
    top = _mm512_max_ps(top, low);
  }
  float threshold = _mm512_reduce_max_ps(top);
  for (int64_t k = whole; k < n; ++k) {
    const Bounds score = bounds(row[k], offset[k], error[k], norm);
    high[k] = score.high;
    nan |= std::isnan(score.low);
    if (score.low > threshold) threshold = score.low;
  }
  if (nan || !std::isfinite(threshold)) return every_column(n, out);
  const __m512 at_least = _mm512_set1_ps(threshold);
  int64_t count = 0;
  for (int64_t k = 0; k < whole; k += 16)
    for (unsigned near = _mm512_cmp_ps_mask(_mm512_loadu_ps(high + k), at_least, _CMP_GE_OQ); near; near &= near - 1)
      out[count++] = static_cast<int32_t>(k + __builtin_ctz(near));
  for (int64_t k = whole; k < n; ++k)
    if (high[k] >= threshold) out[count++] = static_cast<int32_t>(k);
  return count;
}

template <class T>
DP4TL_AVX512 float dot_avx512(const void* left, const void* right, int64_t n) {
  const T *a = static_cast<const T*>(left), *b = static_cast<const T*>(right);
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (int j = 0; j < 4; ++j) sum[j] = _mm512_fmadd_ps(load16(a + i + 16 * j), load16(b + i + 16 * j), sum[j]);
  float rest = 0;
  for (; i < n; ++i) rest += widen(a[i]) * widen(b[i]);
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]))) + rest;
}

template <class T>
DP4TL_AVX512 void add_avx512(const void* data, float* sum, int64_t n) {
  const T* row = static_cast<const T*>(data);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(sum + i, _mm512_add_ps(_mm512_loadu_ps(sum + i), load16(row + i)));
  add_baseline<T>(row + i, sum + i, n - i);
}
#endif

int64_t near_best_baseline(const Bf16* row, const float* offset, const float* error, float norm, int64_t n, float* high,
                           int32_t* out) {
  float threshold = -kInfinity;
  bool nan = false;
  for (int64_t k = 0; k < n; ++k) {
    const Bounds score = bounds(row[k], offset[k], error[k], norm);
    high[k] = score.high;
    nan |= std::isnan(score.low);
    if (score.low > threshold) threshold = score.low;
  }
  if (nan || !std::isfinite(threshold)) return every_column(n, out);
  int64_t count = 0;
  for (int64_t k = 0; k < n; ++k)
    if (high[k] >= threshold) out[count++] = static_cast<int32_t>(k);
  return count;
}

template <class T>
float dot_baseline(const void* left, const void* right, int64_t n) {
  const T *a = static_cast<const T*>(left), *b = static_cast<const T*>(right);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += widen(a[i]) * widen(b[i]);
  return sum;
}

RowArgmax argmax_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return argmax_avx512;
  if (isa == Isa::avx2) return argmax_avx2;
#endif
  (void)isa;
  return argmax_baseline<float>;
}

template <class T>
RowArgmax argmax16_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return argmax16_avx512<T>;
  if (isa == Isa::avx2) return argmax16_avx2<T>;
#endif
  (void)isa;
  return argmax_baseline<T>;
}

template <class T>
Dot dot_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return dot_avx512<T>;
#endif
  (void)isa;
  return dot_baseline<T>;
}

template <class T>
AddRow add_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return add_avx512<T>;
  if (isa == Isa::avx2) return add_avx2<T>;
#endif
  (void)isa;
  return add_baseline<T>;
}

}  // namespace

Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;  // these all have F16C
#endif
  return Isa::baseline;
}

RowArgmax row_argmax(Scalar scalar, Isa isa) {
  switch (scalar) {
    case Scalar::f16: return argmax16_for<F16>(isa);
    case Scalar::bf16: return argmax16_for<Bf16>(isa);
    default: return argmax_for(isa);
  }
}

Dot dot_product(Scalar scalar, Isa isa) {
  switch (scalar) {
    case Scalar::f16: return dot_for<F16>(isa);
    case Scalar::bf16: return dot_for<Bf16>(isa);
    default: return dot_for<float>(isa);
  }
}

AddRow add_row(Scalar scalar, Isa isa) {
  switch (scalar) {
    case Scalar::f16: return add_for<F16>(isa);
    case Scalar::bf16: return add_for<Bf16>(isa);
    default: return add_for<float>(isa);
  }
}

int64_t near_best(const uint16_t* row, const float* offset, const float* error, float norm, int64_t n, float* scratch,
                  int32_t* out, Isa isa) {
  const Bf16* products = reinterpret_cast<const Bf16*>(row);
#if defined(__x86_64__)
  if (isa == Isa::avx512) return near_best_avx512(products, offset, error, norm, n, scratch, out);
#endif
  (void)isa;
  return near_best_baseline(products, offset, error, norm, n, scratch, out);
}

}  // namespace dp4tl
