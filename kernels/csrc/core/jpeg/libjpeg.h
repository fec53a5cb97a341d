// libjpeg-turbo with errors that come back as a return value, and output that lies in memory. Internal to jpeg/.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
// jpeglib.h needs size_t and FILE before it.
#include <jpeglib.h>

namespace dp4tl {

// For the `err` of libjpeg's structs. libjpeg reports an error by a call that must not return, so it jumps back to run().
// Damaged data that libjpeg can repair are accepted, as Pillow accepts them; data that end early are an error.
struct LibjpegErrors : jpeg_error_mgr {
  LibjpegErrors();
  LibjpegErrors(const LibjpegErrors&) = delete;
  LibjpegErrors& operator=(const LibjpegErrors&) = delete;

  // Calls `calls`; false, and why() tells the reason, if libjpeg reported an error. The jump runs no destructors: while libjpeg is
  // called no object that has one may live in `calls`. C++ exceptions pass through.
  template <typename F>
  bool run(F&& calls) {
    if (setjmp(jump)) return false;
    calls();
    return true;
  }
  const char* why() const { return message; }
  // The first of the `num_warnings` about data that libjpeg repaired, since the header was read.
  const char* warning() const { return first_warning; }

  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";
  char first_warning[JMSG_LENGTH_MAX] = "";
};

// A decompressor for one image. Not to be used for another: libjpeg keeps quantisation and Huffman tables, and an image without its
// own would be decoded with those of the image before.
struct LibjpegReader {
  LibjpegReader() = default;
  ~LibjpegReader() { jpeg_destroy_decompress(&info); }
  LibjpegReader(const LibjpegReader&) = delete;
  LibjpegReader& operator=(const LibjpegReader&) = delete;

  jpeg_decompress_struct info{};
};

// A compressor whose output lies in memory. (jpeg_mem_dest loses track of its buffer if it fails to enlarge it.)
class LibjpegWriter {
 public:
  LibjpegWriter() = default;
  ~LibjpegWriter();
  LibjpegWriter(const LibjpegWriter&) = delete;
  LibjpegWriter& operator=(const LibjpegWriter&) = delete;

  void create(LibjpegErrors& errors);  // first of all; inside errors.run()
  std::string bytes() const;           // after jpeg_finish_compress

  jpeg_compress_struct info{};

 private:
  static boolean enlarge(j_compress_ptr info);

  struct Destination : jpeg_destination_mgr {
    uint8_t* data = nullptr;
    size_t capacity = 0;
  } to_;
};

}  // namespace dp4tl
