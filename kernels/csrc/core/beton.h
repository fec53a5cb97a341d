// The tables of a .beton file (layout: dp4tl_fast/beton/format.py). Nothing in the file is trusted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace dp4tl {

// An open file, read with pread alone: a file that shrinks under us gives a short read, where a mapping gives SIGBUS.
class File {
 public:
  explicit File(std::string path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Fill `to` with bytes [offset, offset + size), or throw Error. Thread-safe.
  void read(uint64_t offset, size_t size, void* to) const;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  int fd() const { return fd_; }

 private:
  std::string path_;
  uint64_t size_ = 0;
  int fd_ = -1;
};

struct Record {
  uint64_t offset;  // of the payload in the file
  uint32_t size;    // bytes
  uint16_t width, height;
  int64_t label, index;  // index: the record number where the file has no such field
  bool raw;              // RGB rows; else a JPEG
};

// All records of a file, each checked to lie inside its pages. Needs fields image (RGB) and label (int).
struct Beton {
  explicit Beton(const std::string& path);  // throws Error

  File file;
  std::vector<Record> records;
};

}  // namespace dp4tl
