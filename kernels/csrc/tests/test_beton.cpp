// The table parser: good files are read, damaged ones refused, and none makes it read or write out of bounds.
#include "core/file/beton.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/betons.h"
#include "tests/check.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

const Layout kLayout;
const size_t kAllocations = kLayout.tables();

// The message, or "" if the file was accepted.
std::string refusal(const std::vector<uint8_t>& bytes) {
  Temporary file(bytes);
  try {
    Beton beton(file.path);
    for (size_t i = 0; i < beton.records.size(); ++i) {
      const Record r = beton.records[i];
      CHECK(r.offset <= bytes.size() && r.size <= bytes.size() - r.offset);
    }
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

void refuses(const char* what, size_t at, uint64_t value, size_t width, const char* expected) {
  std::vector<uint8_t> bytes = make_beton(kLayout);
  std::memcpy(&bytes[at], &value, width);
  const std::string message = refusal(bytes);
  CHECK(message.find(expected) != std::string::npos, "%s: '%s' does not say '%s'", what, message.c_str(), expected);
}

}  // namespace

int main() {
  {
    Temporary file(make_beton(kLayout));
    const Beton beton(file.path);
    CHECK(beton.records.size() == kLayout.records);
    const Record r = beton.records[7];
    CHECK(r.raw && r.width == 4 && r.height == 3 && r.size == 36 && r.offset == kLayout.data() + 7 * 36 && r.label == 2 && r.index == 107);
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
  refuses("owner", kAllocations, UINT64_MAX, 8, "names sample");
  refuses("size", kAllocations + 16, UINT64_MAX, 8, "record 0");

  const std::vector<uint8_t> good = make_beton(kLayout);
  for (size_t n = 0; n < good.size(); n += 61) CHECK(!refusal({good.begin(), good.begin() + static_cast<ptrdiff_t>(n)}).empty(), "%zu bytes", n);
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::vector<uint8_t> bytes = good;
    for (int flips = 0; flips < 3; ++flips) {
      // In the header, the tables, or anywhere.
      const size_t at = flips == 0 ? random() % 24 : flips == 1 ? kTables + random() % (kLayout.records * 32) : random() % bytes.size();
      if (random() % 2) bytes[at] ^= static_cast<uint8_t>(1u << random() % 8);
    }
    refusal(bytes);
  }
  std::printf("good\n");
}
