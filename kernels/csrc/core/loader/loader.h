// The data plane: threads that read, decode, crop and resize records into a ring of batches. Knows no Python.
//
// Threads block on condition variables and never spin: they share the cores with the training loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/file/beton.h"
#include "core/isa/kernels.h"
#include "core/loader/buffers.h"
#include "core/loader/readahead.h"
#include "core/loader/record_reader.h"
#include "core/pixels/crop.h"
#include "core/pixels/pixels.h"

namespace dp4tl {

struct LoaderOptions {
  CropSpec crop;
  Output output;
  int views = 1;
  int threads = 1;
  int batch_size = 256;
  int depth = 3;       // batches that are decoded ahead of the consumer
  bool skip = false;   // leave out records that cannot be decoded, instead of failing
  bool exact = false;  // libjpeg-turbo decodes every JPEG to RGB
  bool lent = false;   // batches are written to memory that lend() brings, not to the loader's own
  std::string isa = "auto";

  void check() const;  // throws Error
};

struct Failure {
  int64_t record, position;  // record number; row in its batch. -1: no record is to blame
  std::string message;
};

// One ready batch. Its memory returns to the pool, or to whoever lent it, when the last owner releases it.
struct Batch {
  std::shared_ptr<uint8_t> images;  // [views][capacity][size][size][3] of the output's type
  std::vector<int64_t> labels, index;
  std::vector<Failure> failures;  // of skipped records: their rows are undefined
  int64_t capacity = 0;           // rows per view that the buffer holds
};

class Loader {
 public:
  Loader(std::shared_ptr<const Beton> beton, LoaderOptions options);  // throws Error
  ~Loader();

  // Begin an epoch over these batches: batch b is records[bounds[b] .. bounds[b + 1]). Ends a running one.
  // With `windows`, positions windows[w] .. windows[w + 1] of the records are read ahead together (readahead.h); without,
  // each record is read when its turn comes. What a view shows is drawn for `epoch`; with `epochs`, one per record, for that of
  // the record, so that one that comes twice is shown in two ways.
  void start(std::vector<int64_t> records, std::vector<int64_t> bounds, std::vector<int64_t> windows, uint32_t epoch,
             std::vector<int64_t> epochs = {});

  // With options.lent: memory of at least batch_bytes() for one more batch of the running epoch; batches get it in the order
  // of the calls. It is released with its batch, or when the epoch ends: by the calling thread, never by one of the loader's,
  // and with no lock held, so that the release may take one (Python's). Throws Error: too small, or not aligned.
  void lend(std::shared_ptr<uint8_t> memory, size_t bytes);
  size_t batch_bytes() const;

  enum class Status { kBatch, kEnd, kFailed, kTimeout };
  // Wait for the next batch, at most `milliseconds`. kFailed: a record could not be decoded, or there is no memory, see failure(). Throws Error: no
  // memory was lent for it.
  Status next(int milliseconds, std::shared_ptr<Batch>& batch);
  Failure failure() const;

  // Abandon the running epoch: returns when no thread works on it any more.
  void stop();

  // Where the time of the running or last epoch went.
  struct Profile {
    Stages stages;      // seconds, summed over threads
    double starve = 0;  // the consumer waited for a batch
    double idle = 0;    // threads waited for the consumer, summed over them
  };
  Profile profile() const;

  const LoaderOptions& options() const { return options_; }
  Isa isa() const { return kernels_.isa; }

 private:
  struct Slot;
  void work();
  void open_batch();
  void join();
  class Piece;
  void process(RecordReader& reader, const Slot& slot, int64_t first, int64_t count, uint32_t epoch);
  bool can_claim() const;
  void ask_for(int64_t position, int64_t end) const;

  const std::shared_ptr<const Beton> beton_;
  const LoaderOptions options_;
  const Kernels& kernels_;
  const std::shared_ptr<Pool> pool_;

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable work_, ready_, idle_;
  std::vector<int64_t> records_, bounds_, epochs_;
  std::vector<Slot> slots_;  // ring: batch b is in slots_[b % depth]
  std::deque<std::shared_ptr<uint8_t>> lent_;  // for the batches to be opened next
  int64_t opened_ = 0;       // batches begun
  int64_t taken_ = 0;        // batches handed to the consumer
  int64_t claimed_ = 0;      // records of the newest open batch that were given to threads
  int64_t asked_ = 0;        // records that the system has been asked to read in the background
  int busy_ = 0;             // threads inside process()
  uint32_t epoch_ = 0;
  bool running_ = false, quit_ = false, failed_ = false;
  Failure failure_{};
  Profile profile_;
  std::unique_ptr<ReadAhead> readahead_;  // null: records are read one by one
  std::vector<std::thread> threads_;
};

}  // namespace dp4tl
