#include "core/file/crc32.h"

#include <array>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace dp4tl {
namespace {

// A message is a polynomial over two elements, its first bit that of the highest power; the checksum is its remainder modulo
// x^32 + x^26 + x^23 + ... + 1. Bytes come lowest bit first, so that everything below is reflected: bit 0 has the highest power.
constexpr uint32_t kPolynomial = 0xEDB88320;

constexpr std::array<uint32_t, 256> remainders_of_bytes() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t r = byte;
    for (int bit = 0; bit < 8; ++bit) r = r >> 1 ^ (r & 1 ? kPolynomial : 0);
    table[byte] = r;
  }
  return table;
}

constexpr auto kRemainders = remainders_of_bytes();

uint32_t by_bytes(const uint8_t* data, size_t size, uint32_t state) {
  for (; size; --size, ++data) state = kRemainders[(state ^ *data) & 0xff] ^ state >> 8;
  return state;
}

#if defined(__x86_64__)

bool probe() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_PCLMUL && c & bit_SSE4_1;
}

#define DP4TL_CLMUL __attribute__((target("sse4.1,pclmul")))

// x^n modulo the polynomial, reflected, as a factor for a product without carry (Gopal et al., Intel, 2009: "Fast CRC computation for
// generic polynomials using PCLMULQDQ"). A product of reflected factors is one bit short, for which they are shifted: hence 33 bits.
constexpr long long kBy512[2] = {0x154442bd4, 0x1c6e41596};    // x^(512+32), x^(512-32)
constexpr long long kBy128[2] = {0x1751997d0, 0x0ccaa009e};    // x^(128+32), x^(128-32)
constexpr long long kBy64 = 0x163cd6124;                       // x^64
constexpr long long kBarrett[2] = {0x1db710641, 0x1f7011641};  // the polynomial, and x^64 divided by it

DP4TL_CLMUL inline __m128i load(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

// The 128 bits of `sum`, moved up by as many powers as `factors` say, plus `next`.
DP4TL_CLMUL inline __m128i fold(__m128i sum, __m128i factors, __m128i next) {
  const __m128i high = _mm_clmulepi64_si128(sum, factors, 0x00), low = _mm_clmulepi64_si128(sum, factors, 0x11);
  return _mm_xor_si128(_mm_xor_si128(high, low), next);
}

// At least 64 bytes, a multiple of 16. Four sums, so that products need not wait for one another.
DP4TL_CLMUL uint32_t by_products(const uint8_t* data, size_t size, uint32_t state) {
  const __m128i by512 = _mm_set_epi64x(kBy512[1], kBy512[0]), by128 = _mm_set_epi64x(kBy128[1], kBy128[0]);
  __m128i sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = load(data + 16 * i);
  sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(static_cast<int>(state)));
  const uint8_t* const end = data + size;
  for (data += 64; end - data >= 64; data += 64) {
    for (int i = 0; i < 4; ++i) sums[i] = fold(sums[i], by512, load(data + 16 * i));
  }
  __m128i sum = sums[0];
  for (int i = 1; i < 4; ++i) sum = fold(sum, by128, sums[i]);
  for (; data < end; data += 16) sum = fold(sum, by128, load(data));

  const __m128i low32 = _mm_setr_epi32(-1, 0, -1, 0);
  sum = _mm_xor_si128(_mm_srli_si128(sum, 8), _mm_clmulepi64_si128(sum, by128, 0x10));  // to 96 bits
  sum = _mm_xor_si128(_mm_srli_si128(sum, 4), _mm_clmulepi64_si128(_mm_and_si128(sum, low32), _mm_cvtsi64_si128(kBy64), 0x00));
  const __m128i barrett = _mm_set_epi64x(kBarrett[1], kBarrett[0]);
  const __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(sum, low32), barrett, 0x10);
  sum = _mm_xor_si128(sum, _mm_clmulepi64_si128(_mm_and_si128(quotient, low32), barrett, 0x00));
  return static_cast<uint32_t>(_mm_extract_epi32(sum, 1));
}
#endif

}  // namespace

bool has_fast_crc32() {
#if defined(__x86_64__)
  static const bool found = probe();
  return found;
#else
  return false;
#endif
}

uint32_t crc32(const uint8_t* data, size_t size, uint32_t crc) {
  uint32_t state = ~crc;
#if defined(__x86_64__)
  if (size >= 64 && has_fast_crc32()) {
    const size_t whole = size / 16 * 16;
    state = by_products(data, whole, state);
    data += whole;
    size -= whole;
  }
#endif
  return ~by_bytes(data, size, state);
}

}  // namespace dp4tl
