// Entry points keep every sample and are what libjpeg would write; a shrunk JPEG has the size asked for; damaged data are refused or
// survived, never read beyond.
#include "core/jpeg_recode.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/jpeg_shrink.h"
#include "core/jpeg_transcode.h"
#include "tests/check.h"
#include "tests/jpegs.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }

void check_recoded(JpegRecoder& recoder, const JpegOptions& o, unsigned seed) {
  const std::vector<uint8_t> jpeg = encode(o, seed);
  const std::vector<Reference> reference = decode_planes(jpeg);
  const std::string what = std::to_string(o.width) + "x" + std::to_string(o.height) + " quality " + std::to_string(o.quality);
  for (const int interval : {1, 3, 4, 1000, 65535}) {
    const std::vector<uint8_t> recoded = bytes(recoder.run(jpeg.data(), jpeg.size(), interval));
    CHECK(!recoded.empty(), "%s is refused", what.c_str());
    const std::vector<Reference> planes = decode_planes(recoded);
    CHECK(planes.size() == reference.size(), "%s", what.c_str());
    for (size_t i = 0; i < planes.size(); ++i) CHECK(planes[i].samples == reference[i].samples, "%s interval %d", what.c_str(), interval);
    // libjpeg's tables are optimal too, so its file is as long; equal code lengths may be given to other symbols.
    const size_t theirs = add_entry_points(jpeg.data(), jpeg.size(), interval).size();
    CHECK(recoded.size() <= theirs + 64, "%s interval %d: %zu bytes, libjpeg needs %zu", what.c_str(), interval, recoded.size(), theirs);
    CHECK(bytes(recoder.run(recoded.data(), recoded.size(), interval)) == recoded, "%s: not stable", what.c_str());
  }
}

void check_shrunk(JpegShrinker& shrinker, const JpegOptions& o, unsigned seed) {
  const std::vector<uint8_t> jpeg = encode(o, seed);
  for (const auto& [w, h] : {std::pair{o.width, o.height}, {1, 1}, {(o.width + 1) / 2, (o.height + 2) / 3}, {o.width, 1}}) {
    const std::vector<uint8_t> small = bytes(shrinker.run(jpeg.data(), jpeg.size(), {o.width, o.height}, {w, h}, 90, seed % 5));
    JpegHeader header;
    CHECK(parse_jpeg(small.data(), small.size(), header) && header.width == w && header.height == h, "%d x %d", w, h);
    const std::vector<Reference> before = decode_planes(jpeg), after = decode_planes(small);
    CHECK(before.size() == after.size(), "components");
  }
}

void check_damaged(JpegRecoder& recoder, JpegShrinker& shrinker, const JpegOptions& o, unsigned seed) {
  std::mt19937 random(seed);
  const std::vector<uint8_t> jpeg = encode(o, seed);
  for (int round = 0; round < 40; ++round) {
    std::vector<uint8_t> damaged = jpeg;
    for (int i = round % 4; i >= 0; --i) damaged[random() % (round % 2 ? damaged.size() : std::min<size_t>(damaged.size(), 700))] = static_cast<uint8_t>(random());
    if (round % 5 == 4) damaged.resize(random() % damaged.size());
    damaged.shrink_to_fit();  // so that the sanitizer sees the end
    recoder.run(damaged.data(), damaged.size(), 1 + static_cast<int>(random() % 9));
    JpegHeader h;
    if (!parse_jpeg(damaged.data(), damaged.size(), h) || h.width > 4000 || h.height > 4000) continue;
    try {
      shrinker.run(damaged.data(), damaged.size(), {h.width, h.height}, {(h.width + 1) / 2, (h.height + 1) / 2}, 90, 4);
    } catch (const Error&) {
    }
  }
}

}  // namespace

int main() {
  JpegRecoder recoder;
  unsigned seed = 0;
  for (const auto& [w, h] : {std::pair{1, 1}, {17, 9}, {64, 48}, {133, 101}, {250, 40}}) {
    for (const auto& [sh, sv] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
      for (const int restart : {0, 1, 5}) {
        for (const bool gray : {false, true}) {
          JpegOptions o;
          o.width = w, o.height = h, o.restart_interval = restart, o.gray = gray, o.quality = 30 + static_cast<int>(seed * 7 % 71);
          if (!gray) o.h = sh, o.v = sv;
          check_recoded(recoder, o, ++seed);
          for (const std::string& isa : supported_isas()) {
            JpegShrinker shrinker(kernels_for(isa));
            check_shrunk(shrinker, o, seed);
            check_damaged(recoder, shrinker, o, seed);
          }
        }
      }
    }
  }
  JpegOptions progressive;
  progressive.progressive = true;
  const std::vector<uint8_t> unusual = encode(progressive, 1);
  CHECK(recoder.run(unusual.data(), unusual.size(), 4).empty(), "progressive JPEGs are libjpeg's");
  for (const int interval : {0, -1, 65536}) {
    const std::vector<uint8_t> jpeg = encode({}, 1);
    CHECK(recoder.run(jpeg.data(), jpeg.size(), interval).empty(), "interval %d", interval);
  }
  std::puts("ok");
}
