// Writes the fuzz targets' seeds: make_corpus DIR. Sequences of two images as fuzz_jpeg.cpp reads them: a small JPEG of each kind, with
// an index where it can have one, and the same without its own Huffman tables.
#include <cstdio>
#include <string>

#include "tests/check.h"
#include "tests/odd_jpegs.h"

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
        for (const std::vector<uint8_t>& image : {jpeg, without(jpeg, 0xC4)}) {
          const uint8_t head[6] = {40, 90, 200, 120, static_cast<uint8_t>(image.size() >> 8), static_cast<uint8_t>(image.size())};
          CHECK(std::fwrite(head, 1, 6, file) == 6 && std::fwrite(image.data(), 1, image.size(), file) == image.size());
        }
        std::fclose(file);
      }
    }
  }
}
