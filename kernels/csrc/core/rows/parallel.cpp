#include "core/rows/parallel.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace dp4tl {
namespace {

// The function behind `#pragma omp parallel` of the libgomp that this process has loaded (torch brings one), or null.
// Its threads spin for a few milliseconds after each parallel region of torch: threads of our own would have to share
// the cores with them, and a reduction that follows a matrix product would run at half its speed.
using GompParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

GompParallel gomp_parallel() {
#if defined(__linux__)
  if (void* library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD)) {
    const auto function = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
    dlclose(library);  // ours was one more reference to a library that stays loaded
    return function;
  }
#endif
  return nullptr;
}

}  // namespace

void parallel_rows(int64_t rows, int64_t threads, int64_t grain, const std::function<void(int64_t, int64_t)>& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t begin; (begin = next.fetch_add(grain)) < rows;) work(begin, std::min(begin + grain, rows));
  };
  threads = std::min(threads, (rows + grain - 1) / grain);
  if (threads <= 1) return run();
  if (const GompParallel parallel = gomp_parallel()) {
    parallel([](void* data) { (*static_cast<decltype(&run)>(data))(); }, const_cast<void*>(static_cast<const void*>(&run)),
             static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> helpers;
  for (int64_t t = 1; t < threads; ++t) helpers.emplace_back(run);
  run();
  for (auto& helper : helpers) helper.join();
}

}  // namespace dp4tl
