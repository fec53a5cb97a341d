// What the AVX2 and AVX-512 rows share. Their functions carry the instruction set, not the file: the rest of it stays plain.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own _mm512_undefined_epi32 and _ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "core/rows_plain.h"

#define DP4TL_AVX2 __attribute__((target("avx2,fma,f16c")))
#define DP4TL_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))

namespace dp4tl {
namespace rows {

// The argmax of 16-bit floats works on keys, integers in order of value: the bits, with the magnitude of negative ones
// flipped. Then the largest and smallest element are integer operations on twice as many columns, and NaNs are the keys
// beyond the infinities'.
DP4TL_AVX2 inline int16_t largest(__m256i keys) {
  const __m128i x = _mm_max_epi16(_mm256_castsi256_si128(keys), _mm256_extracti128_si256(keys, 1));
  const __m128i reversed = _mm_sub_epi16(_mm_set1_epi16(0x7fff), x);  // unsigned, largest first
  return static_cast<int16_t>(0x7fff - _mm_extract_epi16(_mm_minpos_epu16(reversed), 0));
}

// The largest of a row of 16-bit floats, from the largest key.
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

}  // namespace rows
}  // namespace dp4tl
