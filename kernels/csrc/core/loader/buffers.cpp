#include "core/loader/buffers.h"

#include <sys/mman.h>

#include <new>
#include <utility>

namespace dp4tl {
namespace {

void* map(size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  ::madvise(p, bytes, MADV_HUGEPAGE);  // only a hint: fewer page faults where the kernel grants it
  return p;
}

}  // namespace

Buffer::Buffer(size_t n) : data(map(n)), bytes(n) {}
Buffer::~Buffer() { ::munmap(data, bytes); }

std::shared_ptr<Buffer> Pool::get() {
  std::unique_ptr<Buffer> buffer;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      buffer = std::move(free_.back());
      free_.pop_back();
    }
  }
  if (!buffer) buffer = std::make_unique<Buffer>(bytes_);
  // The tensors that hold it may outlive the loader: the deleter keeps no strong reference to the pool.
  std::weak_ptr<Pool> pool = weak_from_this();
  return {buffer.release(), [pool](Buffer* used) {
            std::unique_ptr<Buffer> owned(used);
            if (auto alive = pool.lock()) alive->give_back(std::move(owned));
          }};
}

void Pool::give_back(std::unique_ptr<Buffer> buffer) {
  if (::getpid() != process_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.size() < keep_) free_.push_back(std::move(buffer));
}

}  // namespace dp4tl
