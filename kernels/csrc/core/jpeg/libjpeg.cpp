#include "core/jpeg/libjpeg.h"

#include <algorithm>
#include <cstdlib>

#include <jerror.h>

namespace dp4tl {
namespace {

[[noreturn]] void on_error(j_common_ptr info) {
  auto* errors = static_cast<LibjpegErrors*>(info->err);
  (*errors->format_message)(info, errors->message);
  std::longjmp(errors->jump, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level >= 0) return;
  if (info->err->msg_code == JWRN_JPEG_EOF) on_error(info);
  auto* errors = static_cast<LibjpegErrors*>(info->err);
  if (errors->num_warnings++ == 0) (*errors->format_message)(info, errors->first_warning);
}

}  // namespace

LibjpegErrors::LibjpegErrors() {
  jpeg_std_error(this);
  error_exit = on_error;
  emit_message = on_message;
}

boolean LibjpegWriter::enlarge(j_compress_ptr info) {
  auto* to = static_cast<Destination*>(info->dest);
  const size_t held = to->capacity, wanted = std::max<size_t>(4096, 2 * held);
  auto* data = static_cast<uint8_t*>(std::realloc(to->data, wanted));
  if (!data) ERREXIT1(info, JERR_OUT_OF_MEMORY, 0);
  to->data = data;
  to->capacity = wanted;
  to->next_output_byte = data + held;  // all that was held is full
  to->free_in_buffer = wanted - held;
  return TRUE;
}

void LibjpegWriter::create(LibjpegErrors& errors) {
  info.err = &errors;
  jpeg_create_compress(&info);
  to_.init_destination = [](j_compress_ptr info) { enlarge(info); };
  to_.empty_output_buffer = enlarge;
  to_.term_destination = [](j_compress_ptr) {};
  info.dest = &to_;
}

std::string LibjpegWriter::bytes() const {
  return {reinterpret_cast<const char*>(to_.data), to_.capacity - to_.free_in_buffer};
}

LibjpegWriter::~LibjpegWriter() {
  jpeg_destroy_compress(&info);
  std::free(to_.data);
}

}  // namespace dp4tl
