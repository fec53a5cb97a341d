// Decodes scans in lanes: a scan waits for its own look-ups most of the time, so that two of them go on in turn (entropy.inc, compiled
// once per instruction set). A lane's coefficients are decoded segment by segment, and become samples while they are in the cache.
#pragma once

#include <memory>

#include "core/isa/kernels.h"
#include "core/jpeg/scan.h"

namespace dp4tl {

// For one thread.
class ScanDecoder {
 public:
  explicit ScanDecoder(const Kernels& kernels);

  // Begin to decode the wanted MCUs, from the nearest entry before them, in a lane that is free. `scan` stays where it is meanwhile.
  void begin(int lane, const Scan& scan);
  // Go on until a lane is done with its scan, and free. At least one must be busy. Returns its number.
  int advance();
  // Whether the last scan of the lane was in order; else its samples are not.
  bool is_good(int lane) const { return lanes_[lane].good; }

 private:
  struct alignas(128) Blocks {  // the kernels tell a coefficient's place by its address
    int16_t c[kLaneBlocks * 64];
  };
  static constexpr size_t kFirst = 1 << 10, kMost = 1 << 13;  // bytes that are unstuffed at once
  struct Lane {
    const Scan* scan = nullptr;  // null: free
    bool running = false, good = false;
    int blocks_per_mcu, mcus_per_segment;
    int row, next;               // wanted row; the MCU that the bits have arrived at, -1: none
    int predictors[3];
    Segment segment;
    const uint8_t *from, *end;   // bytes yet to be unstuffed; null: none
    size_t chunk, size;          // bytes to unstuff next, and unstuffed ones in memory
    uint8_t bytes[kMost + 64];
  };

  bool begin_segment(int lane);
  bool end_segment(int lane);
  void enter(int lane, const ScanEntry& entry);
  bool more_bytes(int lane);
  bool overrun(int lane) const;

  const Kernels& kernels_;
  std::unique_ptr<Blocks[]> blocks_;
  std::unique_ptr<HuffmanTable> stop_;  // settles nothing
  Lane lanes_[kLanes];
  LaneState states_[kLanes] = {};
};

}  // namespace dp4tl
