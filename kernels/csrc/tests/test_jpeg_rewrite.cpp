// A progressive JPEG made sequential keeps every sample; a shrunk one has the size asked for; damaged data are refused or survived,
// never read out of bounds.
#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/jpeg/shrink.h"
#include "core/jpeg/transcode.h"
#include "tests/check.h"
#include "tests/jpegs.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }

void check_shrunk(JpegShrinker& shrinker, const JpegOptions& o, unsigned seed) {
  const std::vector<uint8_t> jpeg = encode(o, seed);
  for (const auto& [w, h] : {std::pair{o.width, o.height}, {1, 1}, {(o.width + 1) / 2, (o.height + 2) / 3}, {o.width, 1}}) {
    const std::vector<uint8_t> small = bytes(shrinker.run(jpeg.data(), jpeg.size(), {o.width, o.height}, {w, h}, 90));
    JpegHeader header;
    CHECK(parse_jpeg(small.data(), small.size(), header) && header.width == w && header.height == h, "%d x %d", w, h);
    const std::vector<Reference> before = decode_planes(jpeg), after = decode_planes(small);
    CHECK(before.size() == after.size(), "components");
  }
}

void check_sequential(JpegOptions o, unsigned seed) {
  for (const bool progressive : {false, true}) {
    o.progressive = progressive;
    const std::vector<uint8_t> jpeg = encode(o, seed), sequential = bytes(make_sequential(jpeg.data(), jpeg.size()));
    JpegHeader header;
    CHECK(parse_jpeg(sequential.data(), sequential.size(), header) && header.restart_interval == 0, "still unusual");
    const std::vector<Reference> before = decode_planes(jpeg), after = decode_planes(sequential);
    CHECK(before.size() == after.size(), "components");
    for (size_t i = 0; i < before.size(); ++i) CHECK(before[i].samples == after[i].samples, "%d x %d", o.width, o.height);
  }
}

// A few bytes that claim 65,500 x 65,500 pixels are refused before memory is asked for.
void check_bombs() {
  JpegShrinker shrinker(kernels_for(best_isa()));
  std::vector<uint8_t> baseline = encode({}, 1);
  for (size_t i = 0; i + 9 < baseline.size(); ++i) {
    if (baseline[i] == 0xFF && baseline[i + 1] == 0xC0) baseline[i + 5] = baseline[i + 7] = 0xFF, baseline[i + 6] = baseline[i + 8] = 0xDC;
  }
  CHECK(shrinker.run(baseline.data(), baseline.size(), {65500, 65500}, {64, 64}, 90).empty(), "not refused");

  JpegOptions o;
  o.progressive = true;
  std::vector<uint8_t> jpeg = encode(o, 1);
  for (size_t i = 0; i + 9 < jpeg.size(); ++i) {
    if (jpeg[i] == 0xFF && jpeg[i + 1] == 0xC2) jpeg[i + 5] = jpeg[i + 7] = 0xFF, jpeg[i + 6] = jpeg[i + 8] = 0xDC;
  }
  try {
    make_sequential(jpeg.data(), jpeg.size());
    CHECK(false, "not refused");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("65500 x 65500 pixels in") != std::string::npos, "%s", error.what());
  }
}

void check_damaged(JpegShrinker& shrinker, const JpegOptions& o, unsigned seed) {
  std::mt19937 random(seed);
  const std::vector<uint8_t> jpeg = encode(o, seed);
  for (int round = 0; round < 40; ++round) {
    std::vector<uint8_t> damaged = jpeg;
    for (int i = round % 4; i >= 0; --i) damaged[random() % (round % 2 ? damaged.size() : std::min<size_t>(damaged.size(), 700))] = static_cast<uint8_t>(random());
    if (round % 5 == 4) damaged.resize(random() % damaged.size());
    damaged.shrink_to_fit();  // so that the sanitizer sees the end
    try {
      make_sequential(damaged.data(), damaged.size());
    } catch (const Error&) {
    }
    JpegHeader h;
    if (!parse_jpeg(damaged.data(), damaged.size(), h) || h.width > 4000 || h.height > 4000) continue;
    try {
      shrinker.run(damaged.data(), damaged.size(), {h.width, h.height}, {(h.width + 1) / 2, (h.height + 1) / 2}, 90);
    } catch (const Error&) {
    }
  }
}

}  // namespace

int main() {
  check_bombs();
  unsigned seed = 0;
  for (const auto& [w, h] : {std::pair{1, 1}, {17, 9}, {64, 48}, {133, 101}, {250, 40}}) {
    for (const auto& [sh, sv] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
      for (const int restart : {0, 1, 5}) {
        for (const bool gray : {false, true}) {
          JpegOptions o;
          o.width = w, o.height = h, o.restart_interval = restart, o.gray = gray, o.quality = 30 + static_cast<int>(seed * 7 % 71);
          if (!gray) o.h = sh, o.v = sv;
          check_sequential(o, ++seed);
          for (const Isa isa : supported_isas()) {
            JpegShrinker shrinker(kernels_for(isa));
            check_shrunk(shrinker, o, seed);
            check_damaged(shrinker, o, seed);
          }
        }
      }
    }
  }
  std::puts("ok");
}
