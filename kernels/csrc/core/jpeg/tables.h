// Huffman look-up tables, built once for each distinct table of codes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/jpeg/header.h"
#include "core/jpeg/scan.h"

namespace dp4tl {

// Recently used tables, for one thread. Files with standard codes share theirs; optimised ones are built for each file.
class HuffmanCache {
 public:
  // The table, or null if the codes are impossible.
  std::shared_ptr<const HuffmanTable> get(const HuffmanSpec& spec, bool ac);

 private:
  struct Slot {
    std::vector<uint8_t> key;
    uint64_t used = 0;
    std::shared_ptr<HuffmanTable> table;
  };
  std::vector<Slot> slots_;
  uint64_t clock_ = 0;
};

}  // namespace dp4tl
