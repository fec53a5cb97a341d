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
#include "core/jpeg/tables.h"

namespace dp4tl {

// The entries up to that of MCU `last`. Returns the interval in MCUs, or 0 if there is no index or it does not belong to these data.
int read_index(const JpegHeader& header, const uint8_t* data, size_t size, int last, std::vector<ScanEntry>& entries);

// For one thread; reuses its tables from image to image.
class JpegIndexer {
 public:
  explicit JpegIndexer(const Kernels& kernels) : kernels_(kernels) {}

  enum class Result {
    kIndexed,
    kPlain,    // needs no index (it has restart markers, or one already), or has no room for one; in order, where it was checked
    kUnusual,  // not a JPEG that parse_jpeg takes
    kDamaged,
  };
  // Makes the segment, with an entry about every `pixels` pixels of a row. Reads all entropy-coded data, so that it finds damage.
  Result run(const uint8_t* data, size_t size, int pixels);
  // Passes over all entropy-coded data. kPlain: they are in order; kUnusual: it is no JPEG that parse_jpeg takes, or one with
  // restart markers.
  Result check(const uint8_t* data, size_t size);
  // After kIndexed: writes the same JPEG with the segment in its place, `added_bytes` longer than it was.
  void write(const uint8_t* data, size_t size, uint8_t* to) const;
  size_t added_bytes() const { return segment_.size(); }

 private:
  // Fills entries_ with one entry per `interval` MCUs. False if the data are damaged.
  bool walk(const JpegHeader& header, const uint8_t* data, size_t size, int interval);

  const Kernels& kernels_;
  HuffmanCache tables_;
  std::vector<ScanEntry> entries_;
  std::string segment_;
  size_t at_ = 0;  // its place in the JPEG
};

}  // namespace dp4tl
