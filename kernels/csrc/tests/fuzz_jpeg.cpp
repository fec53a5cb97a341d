// libFuzzer: every tool on a sequence of images, each of any bytes. What tools that live on make of an image must be what new ones
// make of it. An image is 4 bytes that choose the crop, 2 for its length (big-endian; the last may be cut), and its bytes.
#include "tests/jpeg_tools.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

constexpr size_t kHead = 6;

bool next_image(const uint8_t*& input, size_t& size, JpegCase& to) {
  if (size < kHead) return false;
  std::copy(input, input + 4, to.crop);
  const size_t bytes = std::min<size_t>(size - kHead, static_cast<size_t>(input[4] << 8 | input[5]));
  to.jpeg = std::vector<uint8_t>(input + kHead, input + kHead + bytes);
  input += kHead + bytes, size -= kHead + bytes;
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
  static std::vector<JpegTools> tools;  // for all inputs
  const std::vector<Isa> isas = supported_isas();
  if (tools.empty()) {
    for (const Isa isa : isas) tools.emplace_back(kernels_for(isa));
  }
  JpegCase image;
  while (next_image(input, size, image)) {
    for (size_t i = 0; i < isas.size(); ++i) {
      const std::string got = tools[i].outcome(image);
      if (got != JpegTools(kernels_for(isas[i])).outcome(image)) __builtin_trap();
      if (got.find(kWrongIndex) != std::string::npos) __builtin_trap();
    }
  }
  return 0;
}
