// Row primitives on AVX2: 8 columns at a time, 32 per step.
#if defined(__x86_64__)
#include "core/rows/rows_x86.h"

#include <algorithm>

namespace dp4tl {
namespace rows {
namespace {

DP4TL_AVX2 inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
DP4TL_AVX2 inline __m256 load8(const F16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
DP4TL_AVX2 inline __m256 load8(const Bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}

// The largest value first, then its first column, which is still in the cache: looking at every new maximum on the way costs more,
// about log n jumps per row that nothing predicts.
DP4TL_AVX2 Best argmax_avx2(const void* data, const float* offset, int64_t n) {
  if (n < 8) return argmax_baseline<float>(data, offset, n);
  const float* row = static_cast<const float*>(data);
  const auto load = [&](int64_t k) DP4TL_AVX2 {
    const __m256 x = load8(row + k);
    return offset ? _mm256_add_ps(x, _mm256_loadu_ps(offset + k)) : x;
  };
  __m256 tops[4], nans = _mm256_setzero_ps();
  for (__m256& top : tops) top = _mm256_set1_ps(-kInfinity);
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
    for (int j = 0; j < 4; ++j) {
      const __m256 x = load(k + 8 * j);
      nans = _mm256_or_ps(nans, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
      tops[j] = _mm256_max_ps(x, tops[j]);
    }
  }
  for (; k < n; k += 8) {  // the last vector overlaps the one before
    const __m256 x = load(std::min(k, n - 8));
    nans = _mm256_or_ps(nans, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    tops[0] = _mm256_max_ps(x, tops[0]);
  }
  if (_mm256_movemask_ps(nans)) return kNanRow;
  __m256 top = _mm256_max_ps(_mm256_max_ps(tops[0], tops[1]), _mm256_max_ps(tops[2], tops[3]));
  top = _mm256_max_ps(top, _mm256_permute2f128_ps(top, top, 1));
  top = _mm256_max_ps(top, _mm256_permute_ps(top, 0x4e));
  top = _mm256_max_ps(top, _mm256_permute_ps(top, 0xb1));
  for (k = 0; k < n; k += 8) {
    const int64_t at = std::min(k, n - 8);
    const unsigned found = _mm256_movemask_ps(_mm256_cmp_ps(load(at), top, _CMP_EQ_OQ));
    if (found) return {_mm256_cvtss_f32(top), at + __builtin_ctz(found)};
  }
  return argmax_baseline<float>(data, offset, n);  // another thread has changed the row meanwhile
}

template <class T>
DP4TL_AVX2 Best argmax16_avx2(const void* data, const float*, int64_t n) {
  if (n < 16) return argmax_baseline<T>(data, nullptr, n);
  const T* row = static_cast<const T*>(data);
  const auto load = [&](int64_t k) DP4TL_AVX2 { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + k)); };
  __m256i top_signed = load(0), top_unsigned = top_signed;
  for (int64_t k = 16; k < n; k += 16) {  // the last vector overlaps the one before
    const __m256i x = load(std::min(k, n - 16));
    top_signed = _mm256_max_epi16(top_signed, x);
    top_unsigned = _mm256_max_epu16(top_unsigned, x);
  }
  const __m256i beyond = _mm256_or_si256(
      _mm256_cmpgt_epi16(top_signed, _mm256_set1_epi16(T::kInfinityBits)),
      _mm256_subs_epu16(top_unsigned, _mm256_set1_epi16(static_cast<int16_t>(kSign | T::kInfinityBits))));
  if (!_mm256_testz_si256(beyond, beyond)) return kNanRow;
  auto largest = static_cast<uint16_t>(largest_signed(top_signed));
  if (largest & kSign) {  // all are negative
    __m256i low = top_unsigned;
    for (int64_t k = 0; k < n; k += 16) low = _mm256_min_epu16(low, load(std::min(k, n - 16)));
    largest = smallest_unsigned(low);
  }
  const Extreme<T> top(largest);
  const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(top.mask));
  const __m256i bits = _mm256_set1_epi16(static_cast<int16_t>(top.bits));
  for (int64_t k = 0; k < n; k += 16) {
    const int64_t at = std::min(k, n - 16);
    const __m256i equal = _mm256_cmpeq_epi16(_mm256_and_si256(load(at), mask), bits);
    if (const unsigned found = _mm256_movemask_epi8(equal)) return {top.value, at + __builtin_ctz(found) / 2};
  }
  return argmax_baseline<T>(data, nullptr, n);  // another thread has changed the row meanwhile
}

template <class T>
DP4TL_AVX2 int64_t near_best_avx2(const void* products, const float* offset, const float* error, float norm, int64_t n,
                                  float* high, int32_t* out) {
  const T* row = static_cast<const T*>(products);
  const __m256 rounding = _mm256_set1_ps(kRounding<T>), sum_rounding = _mm256_set1_ps(kSumRounding);
  const __m256 norms = _mm256_set1_ps(norm), underflow = _mm256_set1_ps(kUnderflow);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 top = _mm256_set1_ps(-kInfinity), nans = _mm256_setzero_ps();
  const int64_t whole = n / 8 * 8;
  for (int64_t k = 0; k < whole; k += 8) {
    const __m256 product = load8(row + k), shift = _mm256_loadu_ps(offset + k), score = _mm256_add_ps(product, shift);
    __m256 slack = _mm256_fmadd_ps(norms, _mm256_loadu_ps(error + k), underflow);
    slack = _mm256_fmadd_ps(sum_rounding, _mm256_and_ps(shift, magnitude), slack);
    slack = _mm256_fmadd_ps(rounding, _mm256_and_ps(product, magnitude), slack);
    const __m256 low = _mm256_sub_ps(score, slack);
    _mm256_storeu_ps(high + k, _mm256_add_ps(score, slack));
    nans = _mm256_or_ps(nans, _mm256_cmp_ps(low, low, _CMP_UNORD_Q));
    top = _mm256_max_ps(top, low);
  }
  float tops[8], threshold = -kInfinity;
  _mm256_storeu_ps(tops, top);
  for (const float each : tops) threshold = std::max(threshold, each);
  bool nan = _mm256_movemask_ps(nans) != 0;
  for (int64_t k = whole; k < n; ++k) {
    const Bounds score = bounds(row[k], offset[k], error[k], norm);
    high[k] = score.high;
    nan |= std::isnan(score.low);
    if (score.low > threshold) threshold = score.low;
  }
  if (nan || !std::isfinite(threshold)) return every_column(n, out);
  const __m256 at_least = _mm256_set1_ps(threshold);
  int64_t count = 0;
  for (int64_t k = 0; k < whole; k += 8)
    for (unsigned near = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(high + k), at_least, _CMP_GE_OQ)); near; near &= near - 1)
      out[count++] = static_cast<int32_t>(k + __builtin_ctz(near));
  for (int64_t k = whole; k < n; ++k)
    if (high[k] >= threshold) out[count++] = static_cast<int32_t>(k);
  return count;
}

template <class T>
DP4TL_AVX2 float dot_avx2(const void* left, const void* right, int64_t n) {
  const T *a = static_cast<const T*>(left), *b = static_cast<const T*>(right);
  __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    for (int j = 0; j < 4; ++j) sum[j] = _mm256_fmadd_ps(load8(a + i + 8 * j), load8(b + i + 8 * j), sum[j]);
  float each[8];
  _mm256_storeu_ps(each, _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
  float all = ((each[0] + each[1]) + (each[2] + each[3])) + ((each[4] + each[5]) + (each[6] + each[7]));
  for (; i < n; ++i) all += widen(a[i]) * widen(b[i]);
  return all;
}

template <class T>
DP4TL_AVX2 void add_avx2(const void* data, float* sum, int64_t n) {
  const T* row = static_cast<const T*>(data);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(sum + i, _mm256_add_ps(_mm256_loadu_ps(sum + i), load8(row + i)));
  add_baseline<T>(row + i, sum + i, n - i);
}

}  // namespace

const Table kAvx2 = {
    {argmax_avx2, argmax16_avx2<F16>, argmax16_avx2<Bf16>},
    {dot_avx2<float>, dot_avx2<F16>, dot_avx2<Bf16>},
    {add_avx2<float>, add_avx2<F16>, add_avx2<Bf16>},
    {near_best_avx2<float>, nullptr, near_best_avx2<Bf16>},
};

}  // namespace rows
}  // namespace dp4tl
#endif
