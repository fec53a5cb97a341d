// Entropy-coded data without the zeros behind FF, so that readers of bits need not look for them.
#pragma once

#include <cstdint>
#include <cstring>

namespace dp4tl {

// Appends data from `from` on to `to`, FF 00 as FF, up to about `stop` (up to 7 bytes more, never beyond `end`), a marker, or `end`. `to`
// has room for 8 bytes more than that. `stuffed(place)` is called for each 00 that is left out, with the place in `to`.
// Returns where to go on; null at a marker or the end.
template <typename F>
const uint8_t* unstuff(const uint8_t* from, const uint8_t* stop, const uint8_t* end, uint8_t*& to, F&& stuffed) {
  while (from < stop) {
    int first = 8;  // FF among the next 8 bytes
    while (end - from >= 8 && from < stop) {
      uint64_t word;
      std::memcpy(&word, from, 8);
      std::memcpy(to, &word, 8);
      const uint64_t inverted = ~word, is_ff = (inverted - 0x0101010101010101u) & word & 0x8080808080808080u;
      if (is_ff) {
        first = __builtin_ctzll(is_ff) >> 3;
        break;
      }
      from += 8, to += 8;
    }
    if (first == 8) {
      if (from >= stop && from != end) return from;
      while (from < end && *from != 0xFF) *to++ = *from++;  // the last bytes
      if (from == end) return nullptr;
      *to = 0xFF;
      first = 0;
    }
    from += first + 1, to += first + 1;
    if (from == end || *from != 0) {  // a marker, or nothing: the FF is not part of the data
      --to;
      return nullptr;
    }
    ++from;
    stuffed(to);
  }
  return from == end ? nullptr : from;
}

}  // namespace dp4tl
