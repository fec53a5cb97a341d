// libFuzzer: both JPEG decoders, the indexer and the rewriter on any bytes. The first four choose the crop.
#include <algorithm>

#include "core/error.h"
#include "core/isa/kernels.h"
#include "core/jpeg/crop_decoder.h"
#include "core/jpeg/index.h"
#include "core/jpeg/transcode.h"

using namespace dp4tl;

namespace {

// The size that the header claims: decode() is only ever called with that of the .beton table. Small, so that a run stays short.
bool claimed_size(const uint8_t* data, size_t size, int& width, int& height) {
  width = height = 0;
  for (size_t i = 2; i + 9 < size; ++i) {
    if (data[i] != 0xFF || data[i + 1] < 0xC0 || data[i + 1] > 0xCF || data[i + 1] == 0xC4) continue;
    const int h = data[i + 5] << 8 | data[i + 6], w = data[i + 7] << 8 | data[i + 8];
    if (int64_t{w} * h >= 1 << 18) return false;  // bytes in a segment may look like a header; any could be the one that counts
    if (width == 0) width = w, height = h;
  }
  return width > 0 && height > 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
  static std::vector<CropDecoder> decoders;
  static TurboDecoder turbo;
  if (decoders.empty()) {
    for (const Isa isa : supported_isas()) decoders.emplace_back(kernels_for(isa));
  }
  if (size < 8) return 0;
  const uint8_t* data = input + 4;
  size -= 4;
  int width, height;
  if (!claimed_size(data, size, width, height)) return 0;
  Rect r{input[0] * width / 256, input[1] * height / 256, 0, 0};
  r.width = 1 + input[2] * (width - r.x - 1) / 255;
  r.height = 1 + input[3] * (height - r.y - 1) / 255;
  Pixels pixels;
  for (CropDecoder& decoder : decoders) decoder.decode(data, size, width, height, r, pixels, 1 << (input[1] & 3));
  try {
    turbo.decode(data, size, width, height, r);
  } catch (const Error&) {
  }
  static JpegIndexer indexer(kernels_for(best_isa()));
  if (indexer.run(data, size, 8 + input[0] % 64) == JpegIndexer::Result::kIndexed) {  // then the index is a right one
    std::vector<uint8_t> indexed(size + indexer.added_bytes());
    indexer.write(data, size, indexed.data());
    Pixels again;
    const bool before = decoders[0].decode(data, size, width, height, r, pixels);
    if (before != decoders[0].decode(indexed.data(), indexed.size(), width, height, r, again)) __builtin_trap();
  }
  try {
    make_sequential(data, size);
  } catch (const Error&) {
  }
  return 0;
}
