// Split rows over threads. No pool: a call costs some 20 us a thread, the work behind it milliseconds.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace dp4tl {

// Calls work(begin, end) on disjoint ranges of up to `grain` rows that cover [0, rows), on up to `threads` threads. Ranges
// are handed out as threads become free: another library's threads may still spin on some core. `work` must not throw.
template <class Work>
void parallel_rows(int64_t rows, int64_t threads, int64_t grain, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t begin; (begin = next.fetch_add(grain)) < rows;) work(begin, std::min(begin + grain, rows));
  };
  std::vector<std::thread> helpers;
  for (int64_t t = 1; t < std::min(threads, (rows + grain - 1) / grain); ++t) helpers.emplace_back(run);
  run();
  for (auto& helper : helpers) helper.join();
}

}  // namespace dp4tl
