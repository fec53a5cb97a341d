// Entropy-coded data to sample planes, for the MCUs that a crop touches. The hot loop is scan.inc, compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dp4tl {

constexpr uint8_t kZigzag[64] = {  // the place in the rows of a block of each coefficient
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

constexpr int kCodeBits = 10;     // looked up at once
constexpr int kCodeMost = 18;     // bits that an entry may consume: three of them per refill
constexpr int kEndOfBlock = 128;  // as a run length

// What a look-up settles: one or two symbols and an end of block, in 64 bits:
//   0 to 7     bits consumed | kCodeUnsettled: not even one symbol is settled
//   8          kCodeEnds: the step ends. A step is a block's DC difference, or its AC coefficients
//   10 to 15   where the last symbol's value bits end, from the right of the 64 that begin with the code
//   16, 24     places of the values from here; the first is as the last where there is but one. An end of block alone is a 0 here
//   32         the first value
//   48         a mask of the last symbol's value bits, which may lie behind the bits looked up
using CodeEntry = uint64_t;
constexpr uint64_t kCodeUnsettled = 128, kCodeEnds = 256;

// The first symbol alone.
struct SymbolEntry {
  int16_t value;  // decoded, if complete; else the number of value bits
  uint8_t run;    // zero coefficients before it
  uint8_t bits;   // of code and value, if complete; else kPartial | code length; 0: the code is longer than the look-up
};
constexpr uint8_t kPartial = 0x80;

struct HuffmanTable {
  CodeEntry entries[1 << kCodeBits];
  SymbolEntry symbol[1 << kCodeBits];
  // Canonical codes, for those longer than the look-up: code of length n is valid if below limit[n] (left-aligned in 16 bits),
  // its symbol is symbols[(code >> (16 - n)) + offset[n]].
  uint32_t limit[18];
  int32_t offset[18];
  uint8_t symbols[256];
};

struct ScanComponent {
  const HuffmanTable *dc, *ac;
  const int16_t* quant;   // row by row; aligned to 64 bytes
  int h, v;               // blocks in an MCU
  int size;               // samples per side of a decoded block: 8, or 4, 2, 1 from its lowest frequencies
  uint8_t* plane;         // top left sample of the first wanted MCU
  ptrdiff_t stride;
};

// Where a decoder can begin: at a restart marker, or where an index says (index.h).
struct ScanEntry {
  uint32_t start, stop;  // its bytes: data[start .. stop)
  int16_t dc[3];         // what the components' DC differences add to
  uint8_t skip_bits;     // of the first byte that belong to what is before it
};

struct Scan {
  const uint8_t *data, *end;         // entropy-coded bytes up to the next marker that is no restart, or the end of the file
  const ScanEntry* entries;          // one per `interval` MCUs, the first at MCU 0
  int num_entries;
  int interval;                      // MCUs; all of them when there are neither restart markers nor an index
  bool restarts;                     // the data begin anew at every entry
  int mcus_per_row;
  int row0, row1, column0, column1;  // wanted MCUs
  int components;
  ScanComponent component[3];
};

// -- lanes: scans that are decoded in turn (lanes.h) ----------------------------------------------------------------------

constexpr int kLanes = 2;
constexpr int kLaneBlocks = 48;  // in a segment, at most

struct LaneStep {
  const HuffmanTable* table;
  int16_t* at;  // the DC, or the first AC coefficient of a block of 64, aligned to its size, in zigzag order
  uint64_t buffer;  // where nothing is written: the bits of the last look-up. A DC difference takes but one
};

// Where a lane is, and what it does next.
struct LaneState {
  const uint8_t* bytes;  // unstuffed
  uint64_t bit;          // of the bytes: where the buffer was filled
  uint64_t most;         // where a buffer may be filled at the latest: the bytes end 8 behind it
  uint64_t buffer;       // left-aligned; the lowest 1 is a mark behind the bits, as far from the right as bits were consumed
  const HuffmanTable* table;
  int16_t* at;
  LaneStep* step;
  LaneStep steps[2 * kLaneBlocks + 1];  // the last one's table settles nothing
};

// MCUs of one row whose coefficients were decoded.
struct Segment {
  const Scan* scan;
  int16_t* coefficients;  // blocks of 64; zeros afterwards
  int mcus, blocks;
  int row, column;        // of the first, from the first wanted one
  const LaneStep* passed;  // null if they are wanted; else their steps: the predictors are all that comes of them
  int* predictors;        // of the components
};

// -- walks: passing over scans without decoding them (walk.h) --------------------------------------------------------------

constexpr int kWalkLanes = 2;    // scans that are passed over in turn
constexpr int kWalkBits = 11;    // looked up at once
constexpr int kWalkMost = 18;    // bits that an entry may consume: three of them per refill
constexpr int kWalkBlocks = 48;  // in a segment, at most
constexpr int kWalkSteps = 2 * kWalkBlocks;  // a block's DC, then its AC coefficients

// Entries: bits consumed | coefficients passed << 6 | kWalkEnds at the end of a step; kWalkUnsettled if not even one symbol is complete.
// (With a DC difference, whose step ends in any case, the second is its number of value bits.)
// A lane subtracts them from: bits in the buffer | coefficients that may still come << 6. It sets kWalkUnsettled by borrowing, if
// more coefficients come than may.
constexpr uint32_t kWalkUnsettled = 1 << 13, kWalkEnds = 1 << 14;
constexpr uint32_t kWalkLeft = 62 << 6;  // at a block's first AC coefficient: one fewer than may come

struct WalkTables {
  uint16_t several[1 << kWalkBits];  // as many symbols as fit
  uint16_t single[1 << kWalkBits];   // the first symbol alone; 0: it ends the step, or is not complete
};

// A lane: where it is, and what it does next.
struct WalkState {
  const uint8_t* p;             // next byte; FF 00 has become FF
  uint64_t buffer;              // left-aligned
  uint32_t left;                // bits in the buffer | coefficients << 6
  const WalkTables* table;      // of this step
  uint64_t step;
  const WalkTables* tables[kWalkSteps + 1];  // of each step; behind the last, one that settles nothing
  uint64_t buffers[kWalkSteps + 1];          // at the last look-up of each step: a DC difference is its only one
};

}  // namespace dp4tl
