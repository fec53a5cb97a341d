#include "core/loader/permutation.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace dp4tl {
namespace {

// Philox4x64-10 (Salmon et al. 2011) as NumPy steps it: the counter counts from 1, four words per count, halves low first.
class Philox {
 public:
  Philox(uint64_t seed, uint64_t epoch) : seed_(seed), epoch_(epoch) {}

  uint32_t next() {
    if (used_ == 8) refill();
    return static_cast<uint32_t>(words_[used_ / 2] >> (used_++ % 2 * 32));
  }

 private:
  void refill() {
    uint64_t c[4] = {++counter_, 0, 0, 0}, seed = seed_, epoch = epoch_;
    for (int round = 0; round < 10; ++round) {
      const auto a = static_cast<unsigned __int128>(0xD2E7470EE14C6C93u) * c[0];
      const auto b = static_cast<unsigned __int128>(0xCA5A826395121157u) * c[2];
      c[0] = static_cast<uint64_t>(b >> 64) ^ c[1] ^ seed;
      c[1] = static_cast<uint64_t>(b);
      c[2] = static_cast<uint64_t>(a >> 64) ^ c[3] ^ epoch;
      c[3] = static_cast<uint64_t>(a);
      seed += 0x9E3779B97F4A7C15u;
      epoch += 0xBB67AE8584CAA73Bu;
    }
    std::copy(c, c + 4, words_);
    used_ = 0;
  }

  uint64_t seed_, epoch_, counter_ = 0, words_[4] = {};
  unsigned used_ = 8;
};

// Uniform from 0 to most, at least 1: words cut to as many bits, until one is not above it.
uint32_t below_or_at(Philox& random, uint32_t most) {
  const uint32_t mask = ~uint32_t{0} >> __builtin_clz(most);
  uint32_t word = random.next() & mask;
  while (word > most) word = random.next() & mask;
  return word;
}

constexpr int64_t kAhead = 64;  // partners drawn and fetched before they are swapped: a miss in every cache takes 100 ns

}  // namespace

void permute(uint64_t seed, uint64_t epoch, int64_t* out, int64_t n) {
  std::iota(out, out + n, int64_t{0});
  Philox random(seed, epoch);
  uint32_t partner[kAhead];
  for (int64_t last = n - 1; last > 0; last -= kAhead) {  // Fisher and Yates, from the end
    const int64_t count = std::min(kAhead, last);
    for (int64_t k = 0; k < count; ++k) {
      partner[k] = below_or_at(random, static_cast<uint32_t>(last - k));
      __builtin_prefetch(&out[partner[k]], 1);
    }
    for (int64_t k = 0; k < count; ++k) std::swap(out[last - k], out[partner[k]]);
  }
}

}  // namespace dp4tl
