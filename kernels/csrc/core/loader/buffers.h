// Large buffers that are reused: fresh pages cost more than decoding small images.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace dp4tl {

struct Buffer {
  explicit Buffer(size_t bytes);  // throws std::bad_alloc
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* const data;
  const size_t bytes;
};

// Hands out buffers of one size; a released one is kept for the next caller, up to `keep` of them.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  Pool(size_t bytes, size_t keep) : bytes_(bytes), keep_(keep) {}
  std::shared_ptr<Buffer> get();

 private:
  void give_back(std::unique_ptr<Buffer> buffer);

  const size_t bytes_, keep_;
  const pid_t process_ = ::getpid();  // in a forked child the lock may be held by a thread that is not there
  std::mutex mutex_;
  std::vector<std::unique_ptr<Buffer>> free_;
};

}  // namespace dp4tl
