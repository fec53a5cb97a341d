#include "core/file/mapping.h"

#include <csignal>
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>

namespace dp4tl {
namespace {

// Read by the signal handler: no locks, no allocation.
std::atomic<Mapping*> g_mappings[Mapping::kMost];
struct sigaction g_previous;

}  // namespace

// Map a page of zeros where a page of the file is missing. False if no mapping of ours holds the address.
bool Mapping::patch(void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (auto& slot : g_mappings) {
    Mapping* m = slot.load(std::memory_order_acquire);
    if (!m) continue;
    const auto start = reinterpret_cast<uintptr_t>(m->data_);
    if (at < start || at >= start + m->size_) continue;
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    void* where = reinterpret_cast<void*>(at / page * page);
    if (::mmap(where, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) return false;
    m->lost_.store(true, std::memory_order_release);
    return true;
  }
  return false;
}

void Mapping::on_sigbus(int signal, void* info, void*) {
  auto* details = static_cast<siginfo_t*>(info);
  if (patch(details->si_addr)) return;
  // Not ours: whoever was here before gets it, as the fault happens again. If it comes back to us, the default ends the process.
  static std::atomic<bool> passed_on{false};
  if (passed_on.exchange(true)) {
    ::signal(SIGBUS, SIG_DFL);
  } else {
    ::sigaction(SIGBUS, &g_previous, nullptr);
  }
  if (details->si_code <= 0) ::raise(signal);  // sent by a process: it does not happen again by itself
}

// Lightning, for one, sets all signals at its end to what Python knew of at its start.
void Mapping::guard() {
  const auto ours = [](int signal, siginfo_t* info, void* context) { Mapping::on_sigbus(signal, info, context); };
  static void (*const handler)(int, siginfo_t*, void*) = ours;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  struct sigaction now {};
  ::sigaction(SIGBUS, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handler) return;
  g_previous = now;
  struct sigaction action {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

Mapping::Mapping(int fd, uint64_t size) : size_(static_cast<size_t>(size)) {
  if (size == 0) return;
  void* p = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return;
  ::madvise(p, size_, MADV_RANDOM);  // a fault reads its own page, not those of pruned records behind it
  data_ = static_cast<uint8_t*>(p);
  guard();
  for (auto& slot : g_mappings) {
    Mapping* free = nullptr;
    if (slot.compare_exchange_strong(free, this)) return;
  }
  ::munmap(p, size_);
  data_ = nullptr;
}

Mapping::~Mapping() {
  if (!data_) return;
  for (auto& slot : g_mappings) {
    Mapping* self = this;
    if (slot.compare_exchange_strong(self, nullptr)) break;
  }
  ::munmap(data_, size_);
}

}  // namespace dp4tl
