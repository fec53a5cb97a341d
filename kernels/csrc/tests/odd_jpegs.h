// JPEGs that are unusual, incomplete or damaged, each in its way: what one leaves behind in a decoder, another might pick up.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/jpeg_tools.h"
#include "tests/jpegs.h"

namespace dp4tl::test {

// The JPEG without its segments of this marker, before the scan: 0xC4 for Huffman tables, 0xDB for quantisation tables.
inline std::vector<uint8_t> without(const std::vector<uint8_t>& jpeg, int marker) {
  std::vector<uint8_t> left(jpeg.begin(), jpeg.begin() + 2);
  size_t at = 2;
  while (jpeg[at + 1] != 0xDA) {
    const size_t whole = 2 + (static_cast<size_t>(jpeg[at + 2]) << 8 | jpeg[at + 3]);
    if (jpeg[at + 1] != marker) left.insert(left.end(), jpeg.begin() + static_cast<ptrdiff_t>(at), jpeg.begin() + static_cast<ptrdiff_t>(at + whole));
    at += whole;
  }
  left.insert(left.end(), jpeg.begin() + static_cast<ptrdiff_t>(at), jpeg.end());
  return left;
}

// The first segment of `marker` with byte `at` of its payload changed to `value`.
inline std::vector<uint8_t> changed(std::vector<uint8_t> jpeg, int marker, size_t at, uint8_t value) {
  for (size_t i = 2; i + 4 + at < jpeg.size(); ++i) {
    if (jpeg[i] == 0xFF && jpeg[i + 1] == marker) {
      jpeg[i + 4 + at] = value;
      break;
    }
  }
  return jpeg;
}

inline std::vector<std::pair<std::string, std::vector<uint8_t>>> odd_jpegs() {
  std::vector<std::pair<std::string, std::vector<uint8_t>>> all;
  const auto with = [](int quality, int h, int v, unsigned seed, bool optimize = false, bool progressive = false, int restart = 0, bool gray = false) {
    JpegOptions o;
    o.width = 53, o.height = 38, o.quality = quality, o.h = h, o.v = v, o.optimize = optimize, o.progressive = progressive;
    o.restart_interval = restart, o.gray = gray;
    return encode(o, seed);
  };
  const std::vector<uint8_t> plain = with(90, 2, 2, 1);
  all.emplace_back("plain", plain);
  all.emplace_back("coarse 4:4:4", with(20, 1, 1, 2));
  all.emplace_back("optimised", with(75, 2, 1, 3, true));
  all.emplace_back("progressive", with(80, 2, 2, 4, true, true));
  all.emplace_back("progressive without Huffman tables", without(with(80, 2, 2, 4, true, true), 0xC4));
  all.emplace_back("restarts", with(60, 1, 2, 5, false, false, 3));
  all.emplace_back("grey", with(85, 1, 1, 6, false, false, 0, true));
  all.emplace_back("Motion JPEG", without(with(95, 2, 1, 7), 0xC4));
  all.emplace_back("grey Motion JPEG", without(with(40, 1, 1, 8, false, false, 0, true), 0xC4));
  all.emplace_back("optimised without Huffman tables", without(with(75, 2, 2, 9, true), 0xC4));
  all.emplace_back("no quantisation tables", without(with(70, 2, 2, 10), 0xDB));
  all.emplace_back("no tables", without(without(with(70, 1, 1, 11), 0xDB), 0xC4));
  all.emplace_back("RGB by component ids", [&] {
    std::vector<uint8_t> rgb = changed(changed(changed(without(with(90, 1, 1, 12), 0xE0), 0xC0, 6, 'R'), 0xC0, 9, 'G'), 0xC0, 12, 'B');
    return changed(changed(changed(rgb, 0xDA, 1, 'R'), 0xDA, 3, 'G'), 0xDA, 5, 'B');
  }());
  all.emplace_back("no JFIF marker", without(with(90, 2, 2, 13), 0xE0));
  all.emplace_back("arithmetic coding claimed", [&] {
    std::vector<uint8_t> jpeg = with(90, 1, 1, 14);
    for (size_t i = 2; i + 1 < jpeg.size(); ++i) {
      if (jpeg[i] == 0xFF && jpeg[i + 1] == 0xC0) jpeg[i + 1] = 0xC9;
    }
    return jpeg;
  }());
  all.emplace_back("impossible Huffman table", changed(plain, 0xC4, 1, 200));
  all.emplace_back("quantisation table 3 wanted", changed(plain, 0xC0, 8, 3));
  all.emplace_back("Huffman tables 3 wanted", changed(plain, 0xDA, 2, 0x33));
  all.emplace_back("zero quantisation", changed(plain, 0xDB, 1, 0));
  all.emplace_back("cut in half", std::vector<uint8_t>(plain.begin(), plain.begin() + static_cast<ptrdiff_t>(plain.size() / 2)));
  all.emplace_back("cut behind its tables", std::vector<uint8_t>(plain.begin(), plain.begin() + 620));
  all.emplace_back("flipped bits", [&] {
    std::vector<uint8_t> jpeg = plain;
    for (size_t i = 700; i < jpeg.size(); i += 97) jpeg[i] ^= 16;
    return jpeg;
  }());
  const auto splice = [&](const char* name, std::vector<uint8_t> segment) {
    std::vector<uint8_t> jpeg = plain;
    jpeg.insert(jpeg.begin() + 2, segment.begin(), segment.end());
    all.emplace_back(name, jpeg);
  };
  splice("restarts claimed", {0xFF, 0xDD, 0, 4, 0, 2});
  splice("Adobe RGB", {0xFF, 0xEE, 0, 14, 'A', 'd', 'o', 'b', 'e', 0, 100, 0, 0, 0, 0, 0});
  splice("arithmetic conditioning", {0xFF, 0xCC, 0, 4, 0x10, 9});
  for (auto& [name, jpeg] : all) jpeg.shrink_to_fit();
  return all;
}

}  // namespace dp4tl::test
