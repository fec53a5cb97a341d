// A read-only mapping that tolerates a file that shrinks: missing pages read as zeros, and lost() reports it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace dp4tl {

class Mapping {
 public:
  // data() is null if the file cannot be mapped, or more than kMost are.
  Mapping(int fd, uint64_t size);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const uint8_t* data() const { return data_; }
  // True once a page was touched that the file no longer has: what was read since may be zeros.
  bool lost() const { return lost_.load(std::memory_order_acquire); }

  static constexpr size_t kMost = 256;

  // See to it that missing pages are ours to handle; called again before reading, as another library may have set the handler.
  static void guard();

 private:
  static bool patch(void* address);
  static void on_sigbus(int signal, void* info, void* context);

  uint8_t* data_ = nullptr;
  const size_t size_;
  std::atomic<bool> lost_{false};
};

}  // namespace dp4tl
