#include "core/jpeg/transcode.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
// jpeglib.h needs size_t and FILE before it.
#include <jerror.h>
#include <jpeglib.h>

#include "core/error.h"
#include "core/jpeg/header.h"

namespace dp4tl {
namespace {

struct Transcoder {
  jpeg_decompress_struct from;
  jpeg_compress_struct to;
  jpeg_error_mgr errors;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
  unsigned char* out;
  unsigned long out_size;
};

[[noreturn]] void on_error(j_common_ptr info) {
  auto* t = static_cast<Transcoder*>(info->client_data);
  (*info->err->format_message)(info, t->message);
  std::longjmp(t->jump, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) on_error(info);
}

// False, with a message, on failure. No C++ object lives in this frame: longjmp runs no destructors.
bool transcode(Transcoder& t, const uint8_t* data, size_t size) {
  if (setjmp(t.jump)) return false;
  t.from.client_data = t.to.client_data = &t;
  t.from.err = t.to.err = jpeg_std_error(&t.errors);
  t.errors.error_exit = on_error;
  t.errors.emit_message = on_message;
  jpeg_create_decompress(&t.from);
  jpeg_create_compress(&t.to);
  jpeg_mem_src(&t.from, data, size);
  jpeg_read_header(&t.from, TRUE);
  if (is_implausible(t.from.image_width, t.from.image_height, size)) {
    std::snprintf(t.message, sizeof t.message, "it claims %u x %u pixels in %zu bytes", t.from.image_width, t.from.image_height, size);
    return false;
  }
  jvirt_barray_ptr* coefficients = jpeg_read_coefficients(&t.from);
  jpeg_copy_critical_parameters(&t.from, &t.to);
  t.to.optimize_coding = TRUE;
  t.to.arith_code = FALSE;
  jpeg_mem_dest(&t.to, &t.out, &t.out_size);
  jpeg_write_coefficients(&t.to, coefficients);
  jpeg_finish_compress(&t.to);
  jpeg_finish_decompress(&t.from);
  return true;
}

}  // namespace

std::string make_sequential(const uint8_t* data, size_t size) {
  Transcoder t{};
  const bool good = transcode(t, data, size);
  std::string result;
  if (good) result.assign(reinterpret_cast<const char*>(t.out), t.out_size);
  jpeg_destroy_compress(&t.to);
  jpeg_destroy_decompress(&t.from);
  std::free(t.out);
  if (!good) throw Error(std::string("is not a JPEG that can be rewritten: ") + t.message);
  return result;
}

}  // namespace dp4tl
