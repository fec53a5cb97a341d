// Entropy-coded data to sample planes, for the MCUs that a crop touches. The hot loop is scan.inc, compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dp4tl {

constexpr int kAcBits = 10, kDcBits = 9, kSkipBits = 11;  // looked up at once
constexpr int kEndOfBlock = 128;  // as a run length: no position goes beyond 64 + 15 otherwise

// A symbol and, where they fit into the bits looked up, the value bits behind it: one look-up per coefficient.
struct HuffmanEntry {
  int16_t value;  // decoded, if complete; else the number of value bits
  uint8_t run;    // zero coefficients before it
  uint8_t bits;   // of code and value, if complete; else kPartial | code length; 0: the code is longer than the look-up
};
constexpr uint8_t kPartial = 0x80;

// One or two complete symbols: coefficients at o1 and o2 zigzag places from here.
struct PairEntry {
  int16_t value1, value2;
  uint8_t o1, o2;   // o1 is kNone if not even one symbol is complete or it ends the block; o2 is kEndOfBlock if there is but one
  uint8_t advance;  // to the place after them; kEndOfBlock + 1 more if the block ends there
  uint8_t bits;
};
constexpr uint8_t kNone = 255;

// Several symbols whose codes fit into the bits looked up, for blocks that are not wanted.
struct SkipEntry {
  uint8_t advance;  // coefficients passed before the end of the block, if that is among them
  uint8_t bits;     // kEnds | bits of all, with the values'; 0: not even one code fits
};
constexpr uint8_t kEnds = 0x80;
constexpr int kSkipMost = kSkipBits + 15;  // bits of an entry

struct HuffmanTable {
  HuffmanEntry entries[1 << kAcBits];  // a DC table uses the first 1 << kDcBits
  PairEntry pairs[1 << kAcBits];
  SkipEntry skip[1 << kSkipBits];
  bool has_skip;
  // Canonical codes, for those longer than the look-up: code of length n is valid if below limit[n] (left-aligned in 16 bits),
  // its symbol is symbols[(code >> (16 - n)) + offset[n]].
  uint32_t limit[18];
  int32_t offset[18];
  uint8_t symbols[256];
};

struct ScanComponent {
  const HuffmanTable *dc, *ac;
  const uint16_t* quant;  // zigzag order
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
