// CRC-32 at every length around its steps, from every alignment, in one piece and in two; its check value.
#include "core/file/crc32.h"

#include <random>
#include <vector>

#include "tests/check.h"

using namespace dp4tl;

namespace {

uint32_t bit_by_bit(const uint8_t* data, size_t size, uint32_t crc) {
  uint32_t state = ~crc;
  for (size_t i = 0; i < size; ++i) {
    state ^= data[i];
    for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ (state & 1 ? 0xEDB88320u : 0);
  }
  return ~state;
}

}  // namespace

int main() {
  const char nine[] = "123456789";
  CHECK(crc32(reinterpret_cast<const uint8_t*>(nine), 9) == 0xCBF43926);  // the check value of CRC-32/ISO-HDLC
  std::mt19937 random(1);
  for (size_t size = 0; size < 400; ++size) {
    std::vector<uint8_t> bytes(size + 16);  // exactly as long as is read: the sanitizer sees a step beyond
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
    const size_t start = size % 16;
    const std::vector<uint8_t> exact(bytes.begin() + static_cast<long>(start), bytes.begin() + static_cast<long>(start + size));
    const uint32_t whole = bit_by_bit(exact.data(), size, 0);
    CHECK(crc32(exact.data(), size) == whole);
    CHECK(crc32(bytes.data() + start, size) == whole);
    const size_t cut = size ? random() % size : 0;
    CHECK(crc32(exact.data() + cut, size - cut, crc32(exact.data(), cut)) == whole);
  }
}
