// Records read ahead in windows, for storage that needs large reads and for files that do not fit into memory.
//
// A window is a run of positions of the epoch's order; its records are read as few long ranges (adjacent records as one) by I/O
// threads while the window before it is decoded. Two windows are in memory at most.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/file/beton.h"

namespace dp4tl {

class ReadAhead {
 public:
  // Window w holds positions bounds[w] .. bounds[w + 1] of `records`. `beton` and `records` outlive this.
  ReadAhead(const Beton& beton, const std::vector<int64_t>& records, std::vector<int64_t> bounds, int threads);
  ~ReadAhead();

  // The payload of the record at `position`, once it is there. Throws Error if it could not be read, or after cancel().
  const uint8_t* wait(int64_t position);
  // Whether wait() would return, or throw, at once. Who holds a record must not wait for one of a later window: it may need the memory.
  bool is_there(int64_t position);
  // The record at `position` is no longer needed. Call it once per position.
  void release(int64_t position);
  // Make every wait() throw, now and later.
  void cancel();

 private:
  struct Piece {  // one read
    uint64_t offset;
    size_t size, at;  // bytes, place in the window's memory
  };
  struct Window {
    std::vector<Piece> pieces;
    std::vector<size_t> place;  // of each position's payload in memory
    std::unique_ptr<uint8_t[]> memory;
    size_t given = 0, read = 0;  // pieces handed to threads, pieces finished
    int64_t left = 0;            // positions not yet released
    std::string error;
  };

  void work();
  bool can_read() const;
  bool is_read(size_t w) const;  // all of window w
  void plan(size_t w);
  size_t window_of(int64_t position) const;

  const Beton& beton_;
  const std::vector<int64_t>& records_;
  const std::vector<int64_t> bounds_;

  std::mutex mutex_;  // guards all below
  std::condition_variable work_, ready_;
  std::vector<Window> windows_;
  size_t planned_ = 0, freed_ = 0;  // windows begun, windows done with
  bool quit_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace dp4tl
