// No image depends on another: what a decoder makes of a JPEG is what a new one makes of it, whatever came before, and whatever is
// decoded in the other lane.
#include <algorithm>
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

// A crop at one of the scales; empty for what the decoder is not given.
struct LaneCase {
  const JpegCase* given;
  int shrink;
};

std::string alone(const Kernels& kernels, const LaneCase& c) {
  int width, height;
  if (!claimed_size(c.given->jpeg, width, height)) return {};
  const std::vector<uint8_t>& jpeg = c.given->jpeg;
  const Rect r = crop_of(*c.given, width, height);
  CropDecoder decoder(kernels);
  Pixels pixels;
  return decoder.decode(jpeg.data(), jpeg.size(), width, height, r, pixels, c.shrink) ? samples(pixels, r) : "refused";
}

// The cases in turn, each in the lane that is free first.
std::vector<std::string> in_lanes(CropDecoder& decoder, const std::vector<LaneCase>& cases) {
  std::vector<std::string> got(cases.size());
  size_t held[kLanes], next = 0;
  Rect rects[kLanes];
  bool busy[kLanes] = {};
  for (;;) {
    bool any = false;
    for (int lane = 0; lane < kLanes; ++lane) {
      for (; !busy[lane] && next < cases.size(); ++next) {
        const std::vector<uint8_t>& jpeg = cases[next].given->jpeg;
        int width, height;
        if (!claimed_size(jpeg, width, height)) continue;
        held[lane] = next, rects[lane] = crop_of(*cases[next].given, width, height);
        busy[lane] = decoder.begin(lane, jpeg.data(), jpeg.size(), width, height, rects[lane], cases[next].shrink);
        if (!busy[lane]) got[next] = "refused";
      }
      any = any || busy[lane];
    }
    if (!any) return got;
    const int lane = decoder.advance();
    busy[lane] = false;
    const Pixels* pixels = decoder.pixels(lane);
    got[held[lane]] = pixels ? samples(*pixels, rects[lane]) : "refused";
  }
}

// Each beside each other one, damaged or not, at every scale, with and without an index: in its lane, each is what it is alone; and
// that is the same in every instruction set.
void lanes() {
  const Kernels& plain = kernels_for(Isa::baseline);
  std::vector<JpegCase> given;
  for (const auto& [name, jpeg] : odd_jpegs()) {
    given.push_back({jpeg});
    JpegIndexer indexer(plain);
    const IndexTask task = indexed_alone(indexer, jpeg, 24);
    if (task.result == IndexTask::Result::kIndexed) given.push_back({insert_index(task), {70, 20, 180, 200}});
  }
  std::vector<LaneCase> cases;
  for (const JpegCase& g : given) {
    for (const int shrink : {1, 2, 4, 8}) cases.push_back({&g, shrink});
  }
  std::vector<std::string> want;
  for (const LaneCase& c : cases) want.push_back(alone(plain, c));
  CHECK(std::count(want.begin(), want.end(), "refused") > 8 && std::count(want.begin(), want.end(), "refused") * 4 < 3 * static_cast<int>(want.size()),
        "%d of %zu refused", static_cast<int>(std::count(want.begin(), want.end(), "refused")), want.size());
  for (const Isa isa : supported_isas()) {
    CropDecoder decoder(kernels_for(isa));
    for (size_t i = 0; i < cases.size(); ++i) CHECK(alone(kernels_for(isa), cases[i]) == want[i], "%s: case %zu alone", name_of(isa), i);
    CHECK(in_lanes(decoder, cases) == want, "%s: all in turn", name_of(isa));
    for (size_t first = 0; first < cases.size(); ++first) {
      for (size_t second = first % 4; second < cases.size(); second += 4) {
        const std::vector<std::string> got = in_lanes(decoder, {cases[first], cases[second]});
        CHECK(got[0] == want[first] && got[1] == want[second], "%s: case %zu beside %zu", name_of(isa), first, second);
      }
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
  CropDecoder lanes(kernels);
  std::vector<JpegCase> several;
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
    several.push_back(std::move(next));
    if (several.size() < 16 && i + 1 < count) continue;
    std::vector<LaneCase> cases;
    for (const JpegCase& c : several) cases.push_back({&c, 1 << (random() & 3)});
    const std::vector<std::string> beside = in_lanes(lanes, cases);
    for (size_t c = 0; c < cases.size(); ++c) {
      CHECK(beside[c] == alone(kernels, cases[c]), "%s: the lanes before image %d of seed %u", name_of(kernels.isa), i, seed);
    }
    several.clear();
  }
}

}  // namespace

// test_jpeg_sequences [IMAGES [SEED]]: how many mutated images to try, 3,000 by default.
int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 3000;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : 1;
  for (const Isa isa : supported_isas()) pairs(kernels_for(isa));
  lanes();
  missing_tables();
  mutations(kernels_for(best_isa()), seed, count);
  std::printf("%d mutated images: good\n", count);
}
