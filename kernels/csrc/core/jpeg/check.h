// Whether a JPEG can be decoded in full, so that what is stored is known to be readable. Makes no pixels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/isa/kernels.h"
#include "core/jpeg/index.h"

namespace dp4tl {

// For one thread; reuses its tables from image to image.
class JpegChecker {
 public:
  explicit JpegChecker(const Kernels& kernels) : indexer_(kernels) {}

  // Empty if libjpeg takes the headers and all entropy-coded data are in order; else what is wrong. `scanned`: the caller has
  // passed over the entropy-coded data already, and only the headers are left to check.
  std::string run(const uint8_t* data, size_t size, bool scanned);

 private:
  JpegIndexer indexer_;
};

}  // namespace dp4tl
