// Entry points into a JPEG as an index in a segment of its own: the entropy-coded data stay as they are, and every other decoder
// skips it.
//
//   FF EF | length | "DP4TL" 0 | version 1 | components | interval (2) | scan bytes (4) | check (4) | entries    big-endian
//
// There is an entry for MCU interval, 2 interval, ...: 2 bytes for the distance in bits from the entry before (bytes as they are
// stored: FF 00 counts two), then 2 for each component's DC predictor. Scan bytes (to the end of the JPEG) and check (of the first
// and last of them) expose an index that another program copied to other data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/isa/kernels.h"
#include "core/jpeg/header.h"
#include "core/jpeg/walk.h"

namespace dp4tl {

// The entries up to that of MCU `last`. Returns the interval in MCUs, or 0 if there is no index or it does not belong to these data.
int read_index(const JpegHeader& header, const uint8_t* data, size_t size, int last, std::vector<ScanEntry>& entries);

// A JPEG to be checked or indexed, and what came of it.
struct IndexTask {
  enum class Result {
    kIndexed,
    kPlain,    // in order; no index is wanted, or it has one already, or has no room for one
    kUnusual,  // not looked at: not a JPEG that parse_jpeg takes, or one with restart markers, which needs no index
    kDamaged,
  };
  const uint8_t* data;
  size_t size;
  int pixels;  // an entry about every so many pixels of a row; 0: check it only
  Result result = Result::kUnusual;
  std::string segment;  // of the index
  size_t at = 0;        // its place in the JPEG

  // After kIndexed: writes the same JPEG with the segment in its place, longer by the segment.
  void write(uint8_t* to) const;
};

// For one thread; reuses its tables from image to image. Passes over all entropy-coded data, so that it finds damage.
class JpegIndexer {
 public:
  explicit JpegIndexer(const Kernels& kernels) : walker_(kernels) {}
  void run(std::vector<IndexTask>& tasks);  // several take less time than one by one

 private:
  ScanWalker walker_;
};

}  // namespace dp4tl
