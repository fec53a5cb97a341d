// Coefficients become the samples of libjpeg's accurate IDCT in every instruction set, bit for bit: also those that do not fit into
// 16 bits on the way, as damaged data have them, and whatever block is transformed together with them.
#include <cstdio>
#include <cstring>
#include <random>

#include "core/isa/kernels.h"
#include "tests/check.h"

using namespace dp4tl;

namespace {

constexpr int kPlaceOf[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                             41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                             30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

// One dimension as jidctint.c has it (Loeffler, Ligtenberg, Moschytz 1989), in 32 bits that wrap.
void reference_1d(const uint32_t in[8], uint32_t out[8]) {
  const uint32_t z1 = (in[2] + in[6]) * 4433u, t2 = z1 - in[6] * 15137u, t3 = z1 + in[2] * 6270u;
  const uint32_t t0 = (in[0] + in[4]) << 13, t1 = (in[0] - in[4]) << 13;
  const uint32_t even[4] = {t0 + t3, t1 + t2, t1 - t2, t0 - t3};
  const uint32_t z5 = (in[7] + in[3] + in[5] + in[1]) * 9633u;
  const uint32_t a = (in[7] + in[1]) * 7373u, b = (in[5] + in[3]) * 20995u;
  const uint32_t c = z5 - (in[7] + in[3]) * 16069u, d = z5 - (in[5] + in[1]) * 3196u;
  const uint32_t odd[4] = {in[1] * 12299u - a + d, in[3] * 25172u - b + c, in[5] * 16819u - b + d, in[7] * 2446u - a + c};
  for (int i = 0; i < 4; ++i) out[i] = even[i] + odd[i], out[7 - i] = even[i] - odd[i];
}

uint32_t scaled(uint32_t x, int shift) { return static_cast<uint32_t>(static_cast<int32_t>(x + (1u << (shift - 1))) >> shift); }

void reference(const int16_t block[64], uint8_t samples[64]) {
  uint32_t columns[8][8], line[8];  // [column][row]
  for (int x = 0; x < 8; ++x) {
    for (int y = 0; y < 8; ++y) line[y] = static_cast<uint32_t>(int32_t{block[8 * y + x]});
    reference_1d(line, columns[x]);
    for (uint32_t& v : columns[x]) v = scaled(v, 11);
  }
  for (int y = 0; y < 8; ++y) {
    uint32_t out[8];
    for (int x = 0; x < 8; ++x) line[x] = columns[x][y];
    reference_1d(line, out);
    for (int x = 0; x < 8; ++x) {
      const auto level = static_cast<int32_t>(scaled(out[x], 18));
      samples[8 * y + x] = static_cast<uint8_t>(level < -128 ? 0 : level > 127 ? 255 : level + 128);
    }
  }
}

struct alignas(128) Blocks {
  int16_t c[kLaneBlocks * 64];
};

}  // namespace

int main() {
  std::mt19937 random(7);
  alignas(64) static int16_t quant[64];
  static Blocks blocks;
  static uint8_t plane[8 * 8 * kLaneBlocks];
  int beyond = 0;
  for (int round = 0; round < 4000; ++round) {
    Blocks given{};
    uint8_t want[kLaneBlocks][64];
    for (int k = 0; k < 64; ++k) quant[k] = static_cast<int16_t>(1 + (round % 3 ? random() % 40 : 0));
    int predictor = 0;
    for (int b = 0; b < kLaneBlocks; ++b) {
      const int last = static_cast<int>(random() % 65), most = 1 << random() % (round % 5 ? 10 : 16);
      int16_t dequantised[64] = {};
      for (int k = 0; k < last; ++k) given.c[64 * b + k] = static_cast<int16_t>(static_cast<int>(random() % (2 * most)) - most);
      predictor += given.c[64 * b];
      for (int k = 0; k < 64; ++k) {
        const int coefficient = k ? given.c[64 * b + k] : predictor;
        dequantised[kPlaceOf[k]] = static_cast<int16_t>(coefficient * quant[kPlaceOf[k]]);
      }
      beyond += std::abs(dequantised[8]) > 2900;
      reference(dequantised, want[b]);
    }
    for (const Isa isa : supported_isas()) {
      blocks = given;
      Scan scan{};
      scan.components = 1;
      scan.component[0] = {nullptr, nullptr, quant, 1, 1, 8, plane, 8 * kLaneBlocks};
      int predictors[3] = {};
      const int mcus = kLaneBlocks - round % 2;  // odd and even numbers
      kernels_for(isa).finish_segment({&scan, blocks.c, mcus, mcus, 0, 0, nullptr, predictors});
      for (int b = 0; b < mcus; ++b) {
        for (int i = 0; i < 64; ++i) {
          const int got = plane[i / 8 * 8 * kLaneBlocks + 8 * b + i % 8];
          CHECK(got == want[b][i], "%s round %d block %d sample %d: %d, not %d", name_of(isa), round, b, i, got, want[b][i]);
        }
      }
      for (int i = 0; i < 64 * mcus; ++i) CHECK(blocks.c[i] == 0, "coefficient %d is left", i);
    }
  }
  CHECK(beyond > 1000, "%d blocks beyond 16 bits", beyond);
  std::printf("good\n");
}
