// CRC-32 as zlib's crc32: what a .beton's sidecar holds of every record.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dp4tl {

// Whether this processor multiplies without carry: without it zlib is faster.
bool has_fast_crc32();

// Of the bytes behind those that `crc` is of; 0 is that of none.
uint32_t crc32(const uint8_t* data, size_t size, uint32_t crc = 0);

}  // namespace dp4tl
