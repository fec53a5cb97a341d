#include "core/loader/loader.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <system_error>

#include "core/error.h"
#include "core/file/mapping.h"

namespace dp4tl {

struct Loader::Slot {
  std::shared_ptr<Batch> batch;  // null while free
  int64_t first = 0, size = 0;   // its records in records_
  int64_t done = 0;
};

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr int64_t kAhead = 64;   // records between asking the system for one and decoding it
constexpr int kReadThreads = 2;  // one waits for storage while the other copies
constexpr size_t kAlignment = alignof(std::max_align_t);  // of lent memory: what malloc gives

size_t image_bytes(const Output& out) { return static_cast<size_t>(out.size) * static_cast<size_t>(out.size) * 3 * bytes_of(out.dtype); }

LoaderOptions checked(LoaderOptions options) {
  options.check();
  return options;
}

}  // namespace

void LoaderOptions::check() const {
  const auto positive = [](const char* name, int value) {
    if (value < 1) throw Error(std::string(name) + " = " + std::to_string(value) + ", but it must be at least 1");
  };
  crop.check();
  positive("size", output.size);
  positive("views", views);
  positive("threads", threads);
  positive("batch_size", batch_size);
  positive("depth", depth);
}

Loader::Loader(std::shared_ptr<const Beton> beton, LoaderOptions options)
    : beton_(std::move(beton)),
      options_(checked(std::move(options))),
      kernels_(kernels_for(isa_named(options_.isa))),
      pool_(std::make_shared<Pool>(batch_bytes(), static_cast<size_t>(options_.depth) + 2)),
      slots_(static_cast<size_t>(options_.depth)) {
  try {
    for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error& error) {
    join();
    throw Error("cannot start " + std::to_string(options_.threads) + " threads: " + error.what());
  }
}

Loader::~Loader() {
  stop();
  join();
}

void Loader::join() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
  }
  work_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Loader::start(std::vector<int64_t> records, std::vector<int64_t> bounds, std::vector<int64_t> windows, uint32_t epoch,
                   std::vector<int64_t> epochs) {
  const auto n = static_cast<int64_t>(beton_->records.size());
  const auto partition = [&](const std::vector<int64_t>& b) {
    return !b.empty() && b.front() == 0 && b.back() == static_cast<int64_t>(records.size()) && std::is_sorted(b.begin(), b.end());
  };
  Mapping::guard();
  if (!partition(bounds) || !(windows.empty() || partition(windows))) throw Error("bounds do not partition the records");
  for (size_t b = 1; b < bounds.size(); ++b) {
    if (bounds[b] == bounds[b - 1] || bounds[b] - bounds[b - 1] > options_.batch_size) throw Error("a batch is empty or too large");
  }
  for (const int64_t r : records) {
    if (r < 0 || r >= n) throw Error("record " + std::to_string(r) + " does not exist: there are " + std::to_string(n));
  }
  if (!epochs.empty() && epochs.size() != records.size()) throw Error("epochs are not one per record");
  for (const int64_t e : epochs) {
    if (e < 0 || e > UINT32_MAX) throw Error("an epoch is not from 0 to 2^32 - 1");
  }
  stop();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    records_ = std::move(records);
    bounds_ = std::move(bounds);
    epochs_ = std::move(epochs);
    if (windows.size() > 1) readahead_ = std::make_unique<ReadAhead>(*beton_, records_, std::move(windows), kReadThreads);
    opened_ = taken_ = claimed_ = asked_ = 0;
    epoch_ = epoch;
    profile_ = Profile{};
    failed_ = false;
    running_ = true;
  }
  work_.notify_all();
}

void Loader::stop() {
  std::vector<Slot> dropped(slots_.size());  // freed, with the memory that was lent, after the lock is released
  std::deque<std::shared_ptr<uint8_t>> unused;
  std::unique_lock<std::mutex> lock(mutex_);
  running_ = false;
  if (readahead_) readahead_->cancel();
  idle_.wait(lock, [this] { return busy_ == 0; });
  readahead_.reset();
  slots_.swap(dropped);
  lent_.swap(unused);
}

size_t Loader::batch_bytes() const {
  return image_bytes(options_.output) * static_cast<size_t>(options_.batch_size) * static_cast<size_t>(options_.views);
}

void Loader::lend(std::shared_ptr<uint8_t> memory, size_t bytes) {
  if (!options_.lent) throw Error("the loader has its own memory");
  if (bytes < batch_bytes()) {
    throw Error("a batch needs " + std::to_string(batch_bytes()) + " bytes, but " + std::to_string(bytes) + " were lent");
  }
  if (reinterpret_cast<uintptr_t>(memory.get()) % kAlignment != 0) {
    throw Error("lent memory must be aligned to " + std::to_string(kAlignment) + " bytes");
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    lent_.push_back(std::move(memory));
  }
  work_.notify_all();
}

Loader::Profile Loader::profile() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return profile_;
}

Failure Loader::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

Loader::Status Loader::next(int milliseconds, std::shared_ptr<Batch>& batch) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (failed_) return Status::kFailed;
  const auto batches = static_cast<int64_t>(bounds_.size()) - 1;
  if (!running_ || taken_ >= batches) return Status::kEnd;
  if (options_.lent && opened_ + static_cast<int64_t>(lent_.size()) <= taken_) throw Error("no memory was lent for the next batch");
  Slot& slot = slots_[static_cast<size_t>(taken_ % options_.depth)];
  const auto ready = [&] { return failed_ || (slot.batch && slot.done == slot.size); };
  const Clock::time_point start = Clock::now();
  const bool there = ready_.wait_for(lock, std::chrono::milliseconds(milliseconds), ready);
  profile_.starve += seconds_since(start);
  if (!there) return Status::kTimeout;
  if (failed_) return Status::kFailed;
  batch = std::move(slot.batch);
  slot.batch.reset();
  ++taken_;
  lock.unlock();
  work_.notify_all();
  return Status::kBatch;
}

// A thread may take records of the newest open batch, or open the next one if the ring has a free slot, and memory.
bool Loader::can_claim() const {
  if (!running_ || failed_) return false;
  const auto batches = static_cast<int64_t>(bounds_.size()) - 1;
  if (opened_ > 0 && claimed_ < bounds_[static_cast<size_t>(opened_)] - bounds_[static_cast<size_t>(opened_) - 1]) return true;
  return opened_ < batches && opened_ < taken_ + options_.depth && !(options_.lent && lent_.empty());
}

// Begin the next batch in its slot of the ring. The caller holds the lock.
void Loader::open_batch() {
  Slot& slot = slots_[static_cast<size_t>(opened_ % options_.depth)];
  slot.first = bounds_[static_cast<size_t>(opened_)];
  slot.size = bounds_[static_cast<size_t>(opened_) + 1] - slot.first;
  slot.done = 0;
  auto batch = std::make_shared<Batch>();
  batch->labels.resize(static_cast<size_t>(slot.size));
  batch->index.resize(static_cast<size_t>(slot.size));
  batch->capacity = options_.batch_size;
  if (options_.lent) {  // last: an exception would release it, under the lock
    batch->images = std::move(lent_.front());
    lent_.pop_front();
  } else {
    std::shared_ptr<Buffer> buffer = pool_->get();
    batch->images = {buffer, static_cast<uint8_t*>(buffer->data)};
  }
  slot.batch = std::move(batch);
  ++opened_;
  claimed_ = 0;
}

void Loader::work() {
  RecordReader reader(beton_->file, options_.crop, options_.output, options_.views, options_.exact, kernels_);
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const Clock::time_point start = Clock::now();
    work_.wait(lock, [this] { return quit_ || can_claim(); });
    if (quit_) return;
    if (opened_ > 0) profile_.idle += seconds_since(start);
    if (opened_ == 0 || claimed_ == slots_[static_cast<size_t>((opened_ - 1) % options_.depth)].size) {
      try {
        open_batch();
      } catch (const std::bad_alloc&) {
        failure_ = {-1, -1, "no memory for a batch of " + std::to_string(batch_bytes()) + " bytes"};
        failed_ = true;
        ready_.notify_all();
        continue;
      }
    }
    Slot& slot = slots_[static_cast<size_t>((opened_ - 1) % options_.depth)];
    // Small pieces, so that threads finish a batch together; not single records, or threads would queue for the lock with tiny images.
    const int64_t piece = std::clamp<int64_t>(slot.size / (4 * options_.threads), 1, 16);
    const int64_t first = claimed_, count = std::min(piece, slot.size - claimed_);
    claimed_ += count;
    ++busy_;
    const uint32_t epoch = epoch_;
    const int64_t ask = asked_;
    if (!readahead_) asked_ = std::min(slot.first + first + count + kAhead, static_cast<int64_t>(records_.size()));
    const int64_t asked = asked_;
    lock.unlock();
    ask_for(ask, asked);
    process(reader, slot, first, count, epoch);
    lock.lock();
    --busy_;
    const Stages spent = reader.take_stages();
    profile_.stages.read += spent.read, profile_.stages.decode += spent.decode, profile_.stages.resize += spent.resize;
    slot.done += count;
    if (slot.done == slot.size || failed_) ready_.notify_all();
    if (busy_ == 0) idle_.notify_all();
  }
}

// Have the system read records that come soon, in the background: the exact range of each.
void Loader::ask_for(int64_t position, int64_t end) const {
  for (; position < end; ++position) {
    const Record r = beton_->records[static_cast<size_t>(records_[static_cast<size_t>(position)])];
    beton_->file.prefetch(r.offset, r.size);
  }
}

// The records first .. first + count of a batch, for a thread's reader.
class Loader::Piece final : public RecordJobs {
 public:
  Piece(Loader& loader, const Slot& slot, int64_t first, int64_t count, uint32_t epoch)
      : loader_(loader), slot_(slot), next_(first), end_(first + count), epoch_(epoch) {}

  bool next(RecordJob& job, bool wait) override {
    if (next_ == end_) return false;
    ReadAhead* const readahead = loader_.readahead_.get();
    const int64_t i = next_, position = slot_.first + i;
    if (readahead && !wait && !readahead->is_there(position)) return false;
    ++next_;
    Batch& batch = *slot_.batch;
    const int64_t number = loader_.records_[static_cast<size_t>(position)];
    const Record record = loader_.beton_->records[static_cast<size_t>(number)];
    batch.labels[static_cast<size_t>(i)] = record.label;
    batch.index[static_cast<size_t>(i)] = record.index;
    const size_t bytes = image_bytes(loader_.options_.output);
    const auto& epochs = loader_.epochs_;
    const uint32_t shown = epochs.empty() ? epoch_ : static_cast<uint32_t>(epochs[static_cast<size_t>(position)]);
    job = {number, record, nullptr, shown, batch.images.get() + static_cast<size_t>(i) * bytes, bytes * static_cast<size_t>(batch.capacity), i};
    try {
      if (readahead) job.payload = readahead->wait(position);
    } catch (const std::exception& error) {
      done(job, error.what());
      return next(job, wait);
    }
    return true;
  }

  void done(const RecordJob& job, const std::string& error) override {
    if (loader_.readahead_) loader_.readahead_->release(slot_.first + job.position);
    if (error.empty()) return;
    failures_.push_back({job.number, job.position, error});
    if (!loader_.options_.skip) end_ = next_;  // those that are on their way may still come before it
  }

  // In the order of the batch.
  std::vector<Failure> failures() {
    std::sort(failures_.begin(), failures_.end(), [](const Failure& a, const Failure& b) { return a.position < b.position; });
    return std::move(failures_);
  }

 private:
  Loader& loader_;
  const Slot& slot_;
  int64_t next_, end_;
  const uint32_t epoch_;
  std::vector<Failure> failures_;
};

void Loader::process(RecordReader& reader, const Slot& slot, int64_t first, int64_t count, uint32_t epoch) {
  Piece piece(*this, slot, first, count, epoch);
  reader.run(piece);
  const std::vector<Failure> failures = piece.failures();
  if (failures.empty()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (!running_) return;  // abandoned: the failures no longer matter
  if (options_.skip) {
    slot.batch->failures.insert(slot.batch->failures.end(), failures.begin(), failures.end());
  } else {
    if (!failed_) failure_ = failures.front();
    failed_ = true;
  }
}

}  // namespace dp4tl
