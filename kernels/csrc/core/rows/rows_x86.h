// What the AVX2 and AVX-512 rows share. The instruction set is an attribute of their functions, not of the file: whatever else is
// compiled there stays plain.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own _mm512_undefined_epi32 and _ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "core/rows/rows_plain.h"

#define DP4TL_AVX2 __attribute__((target("avx2,fma,f16c")))
#define DP4TL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))

namespace dp4tl {
namespace rows {

// The argmax of 16-bit floats works on their bits: as signed integers those from 0 up are in order of value and above all negative
// ones, as unsigned integers the negative ones are in reverse order, and NaNs lie beyond the infinity of their sign.
constexpr uint16_t kSign = 0x8000;

DP4TL_AVX2 inline int16_t largest_signed(__m256i bits) {
  const __m128i x = _mm_max_epi16(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  const __m128i reversed = _mm_sub_epi16(_mm_set1_epi16(0x7fff), x);  // unsigned, largest first
  return static_cast<int16_t>(0x7fff - _mm_extract_epi16(_mm_minpos_epu16(reversed), 0));
}
DP4TL_AVX2 inline uint16_t smallest_unsigned(__m256i bits) {
  const __m128i x = _mm_min_epu16(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  return static_cast<uint16_t>(_mm_extract_epi16(_mm_minpos_epu16(x), 0));
}

// The columns whose (bits & mask) are these hold the largest value: zero has two signs.
template <class T>
struct Extreme {
  uint16_t mask, bits;
  float value;
  explicit Extreme(uint16_t largest) : mask((largest & 0x7fff) == 0 ? 0x7fff : 0xffff), bits(largest & mask), value(widen(T{bits})) {}
};

}  // namespace rows
}  // namespace dp4tl
