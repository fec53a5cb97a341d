// The hot loops, compiled once per instruction set (kernels_*.cpp include kernels.inc) and chosen at run time. All variants
// compute the same bits: fixed point, or floating point without contraction.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa/isa.h"
#include "core/jpeg/scan.h"
#include "core/pixels/pixels.h"

namespace dp4tl {

constexpr int kBand = 16;  // output rows that are resized together, one per SIMD lane

struct Kernels {
  Isa isa;

  // Vertical: to[0..n) = sum over k < taps of weight[k] * from[k * stride + 0..n), in Q7 (sample * 128).
  // Writes up to n rounded up to 16 values; reads no byte beyond from[... + n).
  void (*blend_rows)(const uint8_t* from, ptrdiff_t stride, const int16_t* weight, int taps, int n, int16_t* to);
  // rows[16][stride] -> 16 values each at columns + x * step, for x in [0, n rounded up to 8).
  void (*to_columns)(const int16_t* rows, ptrdiff_t stride, int n, ptrdiff_t step, int16_t* columns);
  // Horizontal: to[c * plane + x * 16 ...][16] = sum over k of weight[x][k] * columns[start[x] + k][c][16], for each c < channels <= 3.
  void (*blend_columns)(const int16_t* columns, int channels, const int* start, const int16_t* weight, int taps, int size,
                        ptrdiff_t plane, int16_t* to);
  // planes[3][size][16] in Q7, in place: Y, Cb, Cr -> R, G, B.
  void (*ycc_to_rgb)(int16_t* y, int16_t* cb, int16_t* cr, int n);
  // r, g, b [size rounded up to 8][16] -> `rows` rows of size x 3 samples of the output's type.
  void (*store_band)(const int16_t* r, const int16_t* g, const int16_t* b, const Output& out, int rows, void* to);
  // Decode coefficients in one lane, or in two lanes in turn, until one comes to the end of its segment or its bytes, or to damage
  // (lanes.h). Returns its number. By the lanes that pass over blocks that are not wanted, a bit for each.
  int (*decode_one[2])(LaneState* lanes);
  int (*decode_both[4])(LaneState* lanes);
  // The samples of a segment.
  void (*finish_segment)(const Segment& segment);
  // Advance kWalkLanes walks until one comes to what a look-up does not settle (walk.h). Returns its number.
  int (*walk_scans)(WalkState* lanes);
};

// `isa` must be supported by this processor.
const Kernels& kernels_for(Isa isa);

}  // namespace dp4tl
