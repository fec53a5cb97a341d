#include "core/loader/readahead.h"

#include <algorithm>
#include <exception>
#include <numeric>

#include "core/error.h"

namespace dp4tl {
namespace {

constexpr size_t kPieceBytes = 4 << 20;  // long enough for slow storage, short enough that threads share a window
constexpr size_t kWindows = 2;           // one is decoded, one is read

}  // namespace

ReadAhead::ReadAhead(const Beton& beton, const std::vector<int64_t>& records, std::vector<int64_t> bounds, int threads)
    : beton_(beton), records_(records), bounds_(std::move(bounds)), windows_(bounds_.size() - 1) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

ReadAhead::~ReadAhead() {
  cancel();
  for (auto& thread : threads_) thread.join();
}

void ReadAhead::cancel() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
  }
  work_.notify_all();
  ready_.notify_all();
}

size_t ReadAhead::window_of(int64_t position) const {
  return static_cast<size_t>(std::upper_bound(bounds_.begin(), bounds_.end(), position) - bounds_.begin()) - 1;
}

// Choose the reads of window w: its records by place in the file, adjacent ones as one range, ranges in pieces. Needs the lock.
void ReadAhead::plan(size_t w) {
  Window& window = windows_[w];
  const int64_t first = bounds_[w], n = bounds_[w + 1] - first;
  const auto record_at = [&](int64_t i) { return beton_.records[static_cast<size_t>(records_[static_cast<size_t>(first + i)])]; };
  std::vector<int64_t> by_offset(static_cast<size_t>(n));
  std::iota(by_offset.begin(), by_offset.end(), 0);
  std::sort(by_offset.begin(), by_offset.end(), [&](int64_t a, int64_t b) { return record_at(a).offset < record_at(b).offset; });
  window.place.resize(static_cast<size_t>(n));
  size_t bytes = 0;
  for (const int64_t i : by_offset) {
    const Record r = record_at(i);
    window.place[static_cast<size_t>(i)] = bytes;
    Piece* last = window.pieces.empty() ? nullptr : &window.pieces.back();
    if (last && last->offset + last->size == r.offset && last->size + r.size <= kPieceBytes) {
      last->size += r.size;
    } else {
      window.pieces.push_back({r.offset, r.size, bytes});
    }
    bytes += r.size;
  }
  window.memory.reset(new uint8_t[std::max<size_t>(bytes, 1)]);
  window.left = n;
}

bool ReadAhead::is_read(size_t w) const { return planned_ > w && windows_[w].read == windows_[w].pieces.size(); }

bool ReadAhead::can_read() const {
  const bool more = planned_ > freed_ && windows_[planned_ - 1].given < windows_[planned_ - 1].pieces.size();
  return more || (planned_ < windows_.size() && planned_ < freed_ + kWindows);
}

void ReadAhead::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return quit_ || can_read(); });
    if (quit_) return;
    if (planned_ == freed_ || windows_[planned_ - 1].given == windows_[planned_ - 1].pieces.size()) {
      try {
        plan(planned_);
      } catch (const std::bad_alloc&) {
        windows_[planned_].error = "cannot be read ahead: there is no memory for it. Lower max_ram";
        windows_[planned_].pieces.clear();
        windows_[planned_].left = bounds_[planned_ + 1] - bounds_[planned_];
      }
      ++planned_;
      work_.notify_all();  // all threads share its pieces
      if (windows_[planned_ - 1].pieces.empty()) {
        ready_.notify_all();
        continue;
      }
    }
    Window& window = windows_[planned_ - 1];
    const Piece piece = window.pieces[window.given++];
    uint8_t* memory = window.memory.get();
    lock.unlock();
    std::string error;
    try {
      beton_.file.read(piece.offset, piece.size, memory + piece.at);
    } catch (const std::exception& e) {
      error = e.what();
    }
    lock.lock();
    if (!error.empty()) window.error = error;
    if (++window.read == window.pieces.size()) ready_.notify_all();
  }
}

bool ReadAhead::is_there(int64_t position) {
  std::lock_guard<std::mutex> lock(mutex_);
  return quit_ || is_read(window_of(position));
}

const uint8_t* ReadAhead::wait(int64_t position) {
  const size_t w = window_of(position);
  std::unique_lock<std::mutex> lock(mutex_);
  const Window& window = windows_[w];
  ready_.wait(lock, [&] { return quit_ || is_read(w); });
  if (quit_) throw Error("was not read: the epoch was abandoned");
  if (!window.error.empty()) throw Error(window.error);
  return window.memory.get() + window.place[static_cast<size_t>(position - bounds_[w])];
}

void ReadAhead::release(int64_t position) {
  const size_t w = window_of(position);
  std::lock_guard<std::mutex> lock(mutex_);
  Window& window = windows_[w];
  if (--window.left > 0) return;
  window.memory.reset();
  window.place = {};
  while (freed_ < planned_ && windows_[freed_].left == 0) ++freed_;
  work_.notify_all();
}

}  // namespace dp4tl
