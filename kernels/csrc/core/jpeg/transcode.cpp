#include "core/jpeg/transcode.h"

#include "core/error.h"
#include "core/jpeg/header.h"
#include "core/jpeg/libjpeg.h"

namespace dp4tl {
namespace {

constexpr const char* kRefused = "is not a JPEG that can be rewritten: ";

// Whether libjpeg would guess pixels: where scans are missing, it smooths the blocks by their neighbours, by the coefficients up to
// number 9 that are not known exactly.
bool smoothed(const jpeg_decompress_struct& from) {
  if (!from.progressive_mode || !from.coef_bits) return false;
  for (int c = 0; c < from.num_components; ++c) {
    for (int i = 0; i < 10; ++i) {
      if (from.coef_bits[c][i] != 0) return true;
    }
  }
  return false;
}

void transcode(const uint8_t* data, size_t size, LibjpegErrors& errors, jpeg_decompress_struct& from, LibjpegWriter& to) {
  from.err = &errors;
  jpeg_create_decompress(&from);
  to.create(errors);
  jpeg_mem_src(&from, data, size);
  jpeg_read_header(&from, TRUE);
  if (is_implausible(from.image_width, from.image_height, size)) {
    throw Error(kRefused + ("it claims " + std::to_string(from.image_width)) + " x " + std::to_string(from.image_height) + " pixels in " +
                std::to_string(size) + " bytes");
  }
  jvirt_barray_ptr* coefficients = jpeg_read_coefficients(&from);
  if (errors.num_warnings > 0) throw Error(kRefused + std::string(errors.warning()));
  if (smoothed(from)) throw Error(kRefused + std::string("some of its scans are missing"));
  jpeg_copy_critical_parameters(&from, &to.info);
  to.info.optimize_coding = TRUE;
  to.info.arith_code = FALSE;
  jpeg_write_coefficients(&to.info, coefficients);
  jpeg_finish_compress(&to.info);
  jpeg_finish_decompress(&from);
}

}  // namespace

std::string make_sequential(const uint8_t* data, size_t size) {
  LibjpegErrors errors;
  LibjpegReader from;
  LibjpegWriter to;
  if (!errors.run([&] { transcode(data, size, errors, from.info, to); })) throw Error(std::string(kRefused) + errors.why());
  return to.bytes();
}

}  // namespace dp4tl
