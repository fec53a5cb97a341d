// No image depends on another: what a decoder makes of a JPEG is what a new one makes of it, whatever came before.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/check.h"
#include "tests/odd_jpegs.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

// Each after each other one, in every order.
void pairs(const Kernels& kernels) {
  const auto all = odd_jpegs();
  std::vector<std::string> alone;
  for (const auto& [name, jpeg] : all) alone.push_back(JpegTools(kernels).outcome({jpeg}));
  JpegTools tools(kernels);  // one for all pairs: nothing may add up either
  for (size_t first = 0; first < all.size(); ++first) {
    for (size_t second = 0; second < all.size(); ++second) {
      tools.outcome({all[first].second});
      CHECK(tools.outcome({all[second].second}) == alone[second], "%s: %s comes out differently after %s", name_of(kernels.isa),
            all[second].first.c_str(), all[first].first.c_str());
    }
  }
}

// The standard Huffman tables stand in for missing ones, also in the first image; quantisation tables have no standard.
void missing_tables() {
  JpegOptions o;
  o.h = 2, o.v = 2;
  const std::vector<uint8_t> whole = encode(o, 3), frame = without(whole, 0xC4), bare = without(whole, 0xDB);
  TurboDecoder a, b;
  const Rect all{0, 0, o.width, o.height};
  const Pixels with_own = a.decode(whole.data(), whole.size(), o.width, o.height, all);
  const Pixels standard = b.decode(frame.data(), frame.size(), o.width, o.height, all);
  for (int y = 0; y < o.height; ++y) {
    CHECK(std::memcmp(with_own.planes[0].data + y * with_own.planes[0].stride, standard.planes[0].data + y * standard.planes[0].stride,
                      static_cast<size_t>(o.width) * 3) == 0, "row %d of a Motion JPEG frame", y);
  }
  try {
    a.decode(bare.data(), bare.size(), o.width, o.height, all);
    CHECK(false, "decoded without quantisation tables");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("Quantization table 0x00 was not defined") != std::string::npos, "%s", error.what());
  }
}

// Sequences of mutated images: `count` images from this seed, each by tools that live on and by new ones.
void mutations(const Kernels& kernels, unsigned seed, int count) {
  const auto all = odd_jpegs();
  std::mt19937 random(seed);
  JpegTools tools(kernels);
  for (int i = 0; i < count; ++i) {
    const auto& [name, jpeg] = all[random() % all.size()];
    JpegCase next{jpeg};
    for (uint8_t& c : next.crop) c = static_cast<uint8_t>(random());
    const size_t headers = std::min<size_t>(next.jpeg.size(), 640);  // where a byte matters most
    for (unsigned n = random() % 4; n > 0; --n) {
      next.jpeg[random() % (random() % 2 ? headers : next.jpeg.size())] = static_cast<uint8_t>(random());
    }
    if (random() % 8 == 0) next.jpeg.resize(random() % next.jpeg.size());
    next.jpeg.shrink_to_fit();
    const std::string got = tools.outcome(next);
    CHECK(got == JpegTools(kernels).outcome(next), "%s: image %d of seed %u, from %s", name_of(kernels.isa), i, seed, name.c_str());
    CHECK(got.find(kWrongIndex) == std::string::npos, "image %d of seed %u, from %s", i, seed, name.c_str());
  }
}

}  // namespace

// test_jpeg_sequences [IMAGES [SEED]]: how many mutated images to try, 3,000 by default.
int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 3000;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : 1;
  for (const Isa isa : supported_isas()) pairs(kernels_for(isa));
  missing_tables();
  mutations(kernels_for(best_isa()), seed, count);
  std::printf("%d mutated images: good\n", count);
}
