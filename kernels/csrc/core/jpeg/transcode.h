// Rewrite a progressive or arithmetic-coded JPEG without loss as one that every decoder reads, and the crop decoder reads in part.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dp4tl {

// The same coefficients as baseline Huffman data, with tables optimised for this image. Every pixel decodes as before; metadata
// other than JFIF and Adobe markers are left out. Throws Error: not a JPEG of 8 bits per sample, or damaged.
std::string make_sequential(const uint8_t* data, size_t size);

}  // namespace dp4tl
