// Row primitives on AVX-512: 16 columns at a time, 64 per step.
#if defined(__x86_64__)
#include "core/rows/rows_x86.h"

#include <algorithm>

namespace dp4tl {
namespace rows {
namespace {

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
    for (int j = 0; j < 4; ++j) {  // rare, about log n times per row
      if (_mm512_cmp_ps_mask(x[j], top, _CMP_NLE_UQ) == 0) continue;
      if (_mm512_cmp_ps_mask(x[j], x[j], _CMP_UNORD_Q)) return kNanRow;
      best.value = _mm512_reduce_max_ps(x[j]);
      top = _mm512_set1_ps(best.value);
      best.index = k + 16 * j + __builtin_ctz(_mm512_cmp_ps_mask(x[j], top, _CMP_EQ_OQ));
    }
  }
  return finish(row, offset, k, n, best);
}

template <class T>
DP4TL_AVX512 Best argmax16_avx512(const void* data, const float*, int64_t n) {
  if (n < 32) return argmax_baseline<T>(data, nullptr, n);
  const T* row = static_cast<const T*>(data);
  const auto load = [&](int64_t k) DP4TL_AVX512 { return _mm512_loadu_si512(row + k); };
  const auto half = [](__m512i x, int i) DP4TL_AVX512 { return i ? _mm512_extracti64x4_epi64(x, 1) : _mm512_castsi512_si256(x); };
  __m512i top_signed = load(0), top_unsigned = top_signed;
  for (int64_t k = 32; k < n; k += 32) {  // the last vector overlaps the one before
    const __m512i x = load(std::min(k, n - 32));
    top_signed = _mm512_max_epi16(top_signed, x);
    top_unsigned = _mm512_max_epu16(top_unsigned, x);
  }
  if (_mm512_cmpgt_epi16_mask(top_signed, _mm512_set1_epi16(T::kInfinityBits)) |
      _mm512_cmpgt_epu16_mask(top_unsigned, _mm512_set1_epi16(static_cast<int16_t>(kSign | T::kInfinityBits)))) {
    return kNanRow;
  }
  auto largest = static_cast<uint16_t>(largest_signed(_mm256_max_epi16(half(top_signed, 0), half(top_signed, 1))));
  if (largest & kSign) {  // all are negative
    __m512i low = top_unsigned;
    for (int64_t k = 0; k < n; k += 32) low = _mm512_min_epu16(low, load(std::min(k, n - 32)));
    largest = smallest_unsigned(_mm256_min_epu16(half(low, 0), half(low, 1)));
  }
  const Extreme<T> top(largest);
  const __m512i mask = _mm512_set1_epi16(static_cast<int16_t>(top.mask));
  const __m512i bits = _mm512_set1_epi16(static_cast<int16_t>(top.bits));
  for (int64_t k = 0; k < n; k += 32) {
    const int64_t at = std::min(k, n - 32);
    const __mmask32 equal = _mm512_cmpeq_epi16_mask(_mm512_and_si512(load(at), mask), bits);
    if (equal) return {top.value, at + __builtin_ctz(equal)};
  }
  return argmax_baseline<T>(data, nullptr, n);  // another thread has changed the row meanwhile
}

template <class T>
DP4TL_AVX512 int64_t near_best_avx512(const void* products, const float* offset, const float* error, float norm, int64_t n,
                                      float* high, int32_t* out) {
  const T* row = static_cast<const T*>(products);
  const __m512 rounding = _mm512_set1_ps(kRounding<T>), sum_rounding = _mm512_set1_ps(kSumRounding);
  const __m512 norms = _mm512_set1_ps(norm), underflow = _mm512_set1_ps(kUnderflow);
  __m512 top = _mm512_set1_ps(-kInfinity);
  __mmask16 nan = 0;
  const int64_t whole = n / 16 * 16;
  for (int64_t k = 0; k < whole; k += 16) {
    const __m512 product = load16(row + k), shift = _mm512_loadu_ps(offset + k), score = _mm512_add_ps(product, shift);
    __m512 slack = _mm512_fmadd_ps(norms, _mm512_loadu_ps(error + k), underflow);
    slack = _mm512_fmadd_ps(sum_rounding, _mm512_abs_ps(shift), slack);
    slack = _mm512_fmadd_ps(rounding, _mm512_abs_ps(product), slack);
    const __m512 low = _mm512_sub_ps(score, slack);
    _mm512_storeu_ps(high + k, _mm512_add_ps(score, slack));
    nan = _kor_mask16(nan, _mm512_cmp_ps_mask(low, low, _CMP_UNORD_Q));
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
  int64_t count = 0, k = 0;
  for (; k + 64 <= whole; k += 64) {
    uint64_t near = 0;
    for (int j = 0; j < 4; ++j)
      near |= uint64_t{_mm512_cmp_ps_mask(_mm512_loadu_ps(high + k + 16 * j), at_least, _CMP_GE_OQ)} << (16 * j);
    for (; near; near &= near - 1) out[count++] = static_cast<int32_t>(k + __builtin_ctzll(near));
  }
  for (; k < whole; k += 16)
    for (unsigned near = _mm512_cmp_ps_mask(_mm512_loadu_ps(high + k), at_least, _CMP_GE_OQ); near; near &= near - 1)
      out[count++] = static_cast<int32_t>(k + __builtin_ctz(near));
  for (; k < n; ++k)
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

}  // namespace

const Table kAvx512 = {
    {argmax_avx512, argmax16_avx512<F16>, argmax16_avx512<Bf16>},
    {dot_avx512<float>, dot_avx512<F16>, dot_avx512<Bf16>},
    {add_avx512<float>, add_avx512<F16>, add_avx512<Bf16>},
    {near_best_avx512<float>, nullptr, near_best_avx512<Bf16>},
};

}  // namespace rows
}  // namespace dp4tl
#endif
