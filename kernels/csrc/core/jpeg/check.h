// Whether a JPEG can be decoded in full, so that what is stored is known to be readable. Makes no pixels.
#pragma once

#include <string>
#include <vector>

#include "core/isa/kernels.h"
#include "core/jpeg/index.h"

namespace dp4tl {

// For one thread; reuses its tables from image to image.
class JpegChecker {
 public:
  explicit JpegChecker(const Kernels& kernels) : indexer_(kernels) {}

  // For each JPEG: empty if libjpeg takes the headers and all entropy-coded data are in order; else what is wrong. Those that ask for
  // an index get one, where they can. `all` false: what is unusual is not checked.
  std::vector<std::string> run(std::vector<IndexTask>& tasks, bool all = true);

 private:
  JpegIndexer indexer_;
};

}  // namespace dp4tl
