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

void Mapping::on_sigbus(int signal, void* info, void* context) {
  auto* details = static_cast<siginfo_t*>(info);
  if (patch(details->si_addr)) return;
  // Not ours: pass it on. Without an earlier handler the default one is restored; the fault then happens again and ends the process.
  if (g_previous.sa_flags & SA_SIGINFO) {
    g_previous.sa_sigaction(signal, details, context);
  } else if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
    g_previous.sa_handler(signal);
  } else {
    ::signal(SIGBUS, SIG_DFL);
  }
}

void install_handler() {
  struct sigaction action {};
  action.sa_sigaction = [](int signal, siginfo_t* info, void* context) { Mapping::on_sigbus(signal, info, context); };
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &g_previous);
}

Mapping::Mapping(int fd, uint64_t size) : size_(static_cast<size_t>(size)) {
  static std::once_flag installed;
  if (size == 0) return;
  void* p = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return;
  ::madvise(p, size_, MADV_RANDOM);  // a fault reads its own page, not those of pruned records behind it
  data_ = static_cast<uint8_t*>(p);
  std::call_once(installed, install_handler);
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
