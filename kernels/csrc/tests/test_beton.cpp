// The table parser: good files are read, damaged ones refused, and none makes it read or write out of bounds.
#include "core/beton.h"

#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/check.h"

using namespace dp4tl;

namespace {

constexpr size_t kPage = 4096, kRecords = 20, kTables = 24 + 3 * 1041;

template <typename T>
void put(std::vector<uint8_t>& bytes, size_t at, T value) {
  std::memcpy(&bytes[at], &value, sizeof value);
}

// image, label, index; raw records of 4 x 3 pixels; one page.
std::vector<uint8_t> good_file() {
  const size_t data = 2 * kPage, tables = 3 * kPage;
  std::vector<uint8_t> bytes(tables + kRecords * 24);
  put<uint16_t>(bytes, 0, 2);
  put<uint16_t>(bytes, 2, 3);
  put<uint32_t>(bytes, 4, kPage);
  put<uint64_t>(bytes, 8, kRecords);
  put<uint64_t>(bytes, 16, tables);
  const std::pair<int, const char*> fields[] = {{2, "image"}, {1, "label"}, {1, "index"}};
  for (size_t f = 0; f < 3; ++f) {
    bytes[24 + f * 1041] = static_cast<uint8_t>(fields[f].first);
    std::memcpy(&bytes[25 + f * 1041], fields[f].second, std::strlen(fields[f].second));
  }
  for (size_t i = 0; i < kRecords; ++i) {
    const size_t row = kTables + i * 32;
    bytes[row] = 1;
    put<uint16_t>(bytes, row + 1, 4);
    put<uint16_t>(bytes, row + 3, 3);
    put<uint64_t>(bytes, row + 5, data + i * 36);
    put<int64_t>(bytes, row + 16, static_cast<int64_t>(i % 5));
    put<int64_t>(bytes, row + 24, static_cast<int64_t>(100 + i));
    put<uint64_t>(bytes, tables + i * 24, i);
    put<uint64_t>(bytes, tables + i * 24 + 8, data + i * 36);
    put<uint64_t>(bytes, tables + i * 24 + 16, 36);
  }
  return bytes;
}

struct Temporary {
  char path[32] = "/tmp/dp4tl_beton_XXXXXX";
  explicit Temporary(const std::vector<uint8_t>& bytes) {
    const int fd = ::mkstemp(path);
    CHECK(fd >= 0 && ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }
  ~Temporary() { ::unlink(path); }
};

// The message, or "" if the file was accepted.
std::string refusal(const std::vector<uint8_t>& bytes) {
  Temporary file(bytes);
  try {
    Beton beton(file.path);
    for (const Record& r : beton.records) CHECK(r.offset <= bytes.size() && r.size <= bytes.size() - r.offset);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

void refuses(const char* what, size_t at, uint64_t value, size_t width, const char* expected) {
  std::vector<uint8_t> bytes = good_file();
  std::memcpy(&bytes[at], &value, width);
  const std::string message = refusal(bytes);
  CHECK(message.find(expected) != std::string::npos, "%s: '%s' does not say '%s'", what, message.c_str(), expected);
}

}  // namespace

int main() {
  {
    Temporary file(good_file());
    const Beton beton(file.path);
    CHECK(beton.records.size() == kRecords);
    const Record& r = beton.records[7];
    CHECK(r.raw && r.width == 4 && r.height == 3 && r.size == 36 && r.offset == 2 * kPage + 7 * 36 && r.label == 2 && r.index == 107);
  }
  refuses("version", 0, 3, 2, "format version 3");
  refuses("fields", 2, 60000, 2, "field descriptors end beyond the file");
  refuses("samples", 8, UINT64_MAX / 16, 8, "metadata table ends beyond the file");
  refuses("unfinished", 16, 0, 8, "never finished");
  refuses("tables inside the metadata", 16, kTables, 8, "does not fit");
  refuses("tables beyond the end", 16, UINT64_MAX, 8, "does not fit");
  refuses("unknown type", 24, 99, 1, "type id 99");
  refuses("no image", 25, 'x', 1, "no image field");
  refuses("mode", kTables, 7, 1, "image mode 7");
  refuses("pointer", kTables + 5, UINT64_MAX - 10, 8, "record 0");
  refuses("width", kTables + 1, 5, 2, "record 0");
  refuses("owner", 3 * kPage, UINT64_MAX, 8, "names sample");
  refuses("size", 3 * kPage + 16, UINT64_MAX, 8, "record 0");

  const std::vector<uint8_t> good = good_file();
  for (size_t n = 0; n < good.size(); n += 61) CHECK(!refusal({good.begin(), good.begin() + static_cast<ptrdiff_t>(n)}).empty(), "%zu bytes", n);
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::vector<uint8_t> bytes = good;
    for (int flips = 0; flips < 3; ++flips) {
      // In the header, the tables, or anywhere.
      const size_t at = flips == 0 ? random() % 24 : flips == 1 ? kTables + random() % (kRecords * 32) : random() % bytes.size();
      if (random() % 2) bytes[at] ^= static_cast<uint8_t>(1u << random() % 8);
    }
    refusal(bytes);
  }
  std::printf("good\n");
}
