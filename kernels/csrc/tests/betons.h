// Small .beton files for the tests.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/check.h"

namespace dp4tl::test {

constexpr size_t kTables = 24 + 3 * 1041;  // where the metadata table begins

template <typename T>
void put(std::vector<uint8_t>& bytes, size_t at, T value) {
  std::memcpy(&bytes[at], &value, sizeof value);
}

struct Layout {
  size_t page = 4096, records = 20;
  int width = 4, height = 3;

  size_t payload() const { return size_t{3} * width * height; }
  size_t data() const { return (kTables + records * 32 + page - 1) / page * page; }
  size_t tables() const { return (data() + records * payload() + page - 1) / page * page; }
};

// image, label (i % 5), index (100 + i); raw records whose bytes are all i % 256.
inline std::vector<uint8_t> make_beton(const Layout& layout) {
  std::vector<uint8_t> bytes(layout.tables() + layout.records * 24);
  put<uint16_t>(bytes, 0, 2);
  put<uint16_t>(bytes, 2, 3);
  put<uint32_t>(bytes, 4, static_cast<uint32_t>(layout.page));
  put<uint64_t>(bytes, 8, layout.records);
  put<uint64_t>(bytes, 16, layout.tables());
  const std::pair<int, const char*> fields[] = {{2, "image"}, {1, "label"}, {1, "index"}};
  for (size_t f = 0; f < 3; ++f) {
    bytes[24 + f * 1041] = static_cast<uint8_t>(fields[f].first);
    std::memcpy(&bytes[25 + f * 1041], fields[f].second, std::strlen(fields[f].second));
  }
  for (size_t i = 0; i < layout.records; ++i) {
    const size_t row = kTables + i * 32, at = layout.data() + i * layout.payload(), allocation = layout.tables() + i * 24;
    bytes[row] = 1;
    put<uint16_t>(bytes, row + 1, static_cast<uint16_t>(layout.width));
    put<uint16_t>(bytes, row + 3, static_cast<uint16_t>(layout.height));
    put<uint64_t>(bytes, row + 5, at);
    put<int64_t>(bytes, row + 16, static_cast<int64_t>(i % 5));
    put<int64_t>(bytes, row + 24, static_cast<int64_t>(100 + i));
    put<uint64_t>(bytes, allocation, i);
    put<uint64_t>(bytes, allocation + 8, at);
    put<uint64_t>(bytes, allocation + 16, layout.payload());
    std::memset(&bytes[at], static_cast<int>(i % 256), layout.payload());
  }
  return bytes;
}

struct Temporary {  // a file with these bytes
  char path[32] = "/tmp/dp4tl_beton_XXXXXX";
  explicit Temporary(const std::vector<uint8_t>& bytes) {
    const int fd = ::mkstemp(path);
    CHECK(fd >= 0 && ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }
  ~Temporary() { ::unlink(path); }
};

}  // namespace dp4tl::test
