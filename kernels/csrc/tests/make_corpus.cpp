// Writes the fuzz targets' seeds: make_corpus DIR. Four bytes that choose a crop, then a small JPEG of each kind, with an index where
// it can have one.
#include <cstdio>
#include <string>

#include "tests/check.h"
#include "tests/jpegs.h"

using namespace dp4tl::test;

int main(int argc, char** argv) {
  CHECK(argc == 2, "usage: make_corpus DIR");
  int seed = 0;
  for (const bool progressive : {false, true}) {
    for (const int restart : {0, 4}) {
      for (const auto& [h, v] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {0, 0}}) {
        JpegOptions o;
        o.width = 37, o.height = 21, o.quality = 40, o.optimize = true;
        o.progressive = progressive, o.restart_interval = restart, o.gray = h == 0;
        if (h) o.h = h, o.v = v;
        const std::vector<uint8_t> plain = encode(o, static_cast<unsigned>(++seed));
        dp4tl::JpegIndexer indexer(dp4tl::kernels_for(dp4tl::best_isa()));
        const bool indexed = indexer.run(plain.data(), plain.size(), 8) == dp4tl::JpegIndexer::Result::kIndexed;
        const std::vector<uint8_t> jpeg = indexed ? insert_index(indexer, plain) : plain;
        std::FILE* file = std::fopen((std::string(argv[1]) + "/jpeg_" + std::to_string(seed)).c_str(), "wb");
        CHECK(file);
        const uint8_t crop[4] = {40, 90, 200, 120};
        CHECK(std::fwrite(crop, 1, 4, file) == 4 && std::fwrite(jpeg.data(), 1, jpeg.size(), file) == jpeg.size());
        std::fclose(file);
      }
    }
  }
}
