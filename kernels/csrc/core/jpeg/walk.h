// Passes over the entropy-coded data of whole JPEGs, without pixels: where each entry begins, and whether the data are in order.
//
// Such a walk waits for its own look-ups most of the time, so that two of them go on in turn (walk.inc, compiled once per instruction
// set). What a look-up does not settle (long codes, full blocks, the end of a segment) is settled here, symbol by symbol.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/isa/kernels.h"
#include "core/jpeg/header.h"
#include "core/jpeg/scan.h"

namespace dp4tl {

// The codes of one DHT table, and what looking up kWalkBits of the data gives.
struct WalkTable {
  WalkTables next;
  // Canonical codes: those of n bits are below limit[n] (left-aligned in 16 bits); symbol = symbols[(code >> (16 - n)) + offset[n]].
  uint32_t limit[17];
  int32_t offset[17];
  uint8_t symbols[256];

  bool build(const HuffmanSpec& spec, bool ac);  // false if the codes are impossible
};

// One scan without restart markers.
struct ScanWalk {
  struct Component {
    HuffmanSpec dc, ac;
    int blocks;  // in an MCU
  };
  const uint8_t *data, *end;  // up to the end marker
  int mcus;
  int interval;               // MCUs from one entry to the next
  int components;
  Component component[3];
  // The result: one entry for every `interval` MCUs, if the data are not damaged, end in time and do not continue after the last MCU.
  std::vector<ScanEntry> entries;
  bool good = false;
};

// For one thread; reuses its memory from scan to scan.
class ScanWalker {
 public:
  explicit ScanWalker(const Kernels& kernels);
  void run(std::vector<ScanWalk>& scans);

 private:
  struct Slot {
    std::vector<uint8_t> key;
    uint64_t used = 0;
    std::shared_ptr<WalkTable> table;
  };
  struct Lane {  // what is known of a scan on its way
    ScanWalk* scan = nullptr;
    std::shared_ptr<const WalkTable> dc[3], ac[3];
    int component[kWalkBlocks];      // of the blocks of a segment
    int blocks_per_mcu, mcus_per_segment;
    int mcu, segment_end;            // MCUs
    uint64_t first_step, last_step;  // of this segment
    uint32_t dc_sum[3];
    std::vector<uint8_t> bytes;      // FF 00 as FF, then zeros
    size_t size;                     // without the zeros
    std::vector<uint32_t> stuffed;   // the bytes before which a 00 was left out
  };

  void begin_next(int lane);
  bool begin(int lane, ScanWalk& scan);
  void begin_segment(int lane);
  bool settle(int lane);
  bool end_segment(int lane);
  bool finish(int lane);
  std::shared_ptr<const WalkTable> table_of(const HuffmanSpec& spec, bool ac);

  const Kernels& kernels_;
  std::vector<Slot> slots_;
  uint64_t clock_ = 0;
  std::unique_ptr<WalkTables> idle_, stop_;
  std::vector<ScanWalk>* scans_ = nullptr;
  size_t next_ = 0;
  int active_ = 0;
  Lane lanes_[kWalkLanes];
  WalkState states_[kWalkLanes] = {};
};

}  // namespace dp4tl
