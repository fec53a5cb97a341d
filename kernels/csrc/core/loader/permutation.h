// The order of an epoch: what NumPy's Generator(Philox(key=(seed, epoch))).permutation(n) gives, to the bit, several times as fast.
#pragma once

#include <cstdint>

namespace dp4tl {

// Fill out[0 .. n) with a permutation of 0 .. n - 1, n at most 2^32. dp4tl_fast/loaders/order.py is the reference.
void permute(uint64_t seed, uint64_t epoch, int64_t* out, int64_t n);

}  // namespace dp4tl
