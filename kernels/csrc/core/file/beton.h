// The tables of a .beton file (layout: dp4tl_fast/beton/format.py). Nothing in the file is trusted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/file/mapping.h"

namespace dp4tl {

// An open file. Reads are exact: no readahead into bytes that were not asked for.
class File {
 public:
  explicit File(std::string path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Fill `to` with bytes [offset, offset + size), or throw Error. Thread-safe.
  void read(uint64_t offset, size_t size, void* to) const;

  // The bytes [offset, offset + size) if they are mapped; else null, use read(). Call check() after using them.
  const uint8_t* view(uint64_t offset, size_t size) const;
  // Throw Error if the file has shrunk since it was opened: what a view shows may be zeros.
  void check() const;
  // The bytes will be needed soon: begin to read those that are not cached, in the background.
  void prefetch(uint64_t offset, size_t size) const;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  int fd() const { return fd_; }

 private:
  std::string path_;
  uint64_t size_ = 0;
  int fd_ = -1;
  std::unique_ptr<Mapping> mapping_;
};

struct Record {
  uint64_t offset;  // of the payload in the file
  uint32_t size;    // bytes
  uint16_t width, height;
  int64_t label, index;  // index: the record number where the file has no such field
  bool raw;              // RGB rows; else a JPEG
};

// The tables of all records, 24 bytes each: every GPU has a process that opens the file, which may hold millions.
class Records {
 public:
  size_t size() const { return places_.size(); }
  Record operator[](size_t i) const {
    const Place& p = places_[i];
    return {p.offset, p.size, p.width, p.height, labels_[i], index_.empty() ? static_cast<int64_t>(i) : index_[i], p.raw != 0};
  }

 private:
  friend struct Beton;
  struct Place {
    uint64_t raw : 1, offset : 63;
    uint32_t size;
    uint16_t width, height;
  };
  static_assert(sizeof(Place) == 16, "no padding");
  std::vector<Place> places_;
  std::vector<int64_t> labels_, index_;  // index_ is empty while every record's index is its number
};

// All records of a file, each checked to lie inside its pages. Needs fields image (RGB) and label (int).
struct Beton {
  explicit Beton(const std::string& path);  // throws Error

  File file;
  Records records;
};

}  // namespace dp4tl
