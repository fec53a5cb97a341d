// Rewrite a JPEG without loss so that a decoder can begin in the middle of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dp4tl {

// The same coefficients as baseline Huffman data with a restart marker every `interval` MCUs and tables optimised for this image
// (so it is usually smaller than before). Every pixel decodes as before; metadata other than JFIF and Adobe markers are left out.
// Throws Error: not a JPEG of 8 bits a sample, or damaged.
std::string add_entry_points(const uint8_t* data, size_t size, int interval);

}  // namespace dp4tl
