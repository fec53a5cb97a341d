// Split rows over threads. No pool: a call costs some 20 us a thread, the work behind it milliseconds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace dp4tl {

// Calls work(begin, end) on up to `threads` disjoint ranges that cover [0, rows), none shorter than `grain` but the last.
// `work` must not throw.
template <class Work>
void parallel_rows(int64_t rows, int64_t threads, int64_t grain, const Work& work) {
  threads = std::max<int64_t>(1, std::min(threads, rows / std::max<int64_t>(grain, 1)));
  const int64_t share = (rows + threads - 1) / threads;
  std::vector<std::thread> helpers;
  for (int64_t t = 1; t < threads; ++t)
    helpers.emplace_back([&work, t, share, rows] { work(std::min(t * share, rows), std::min((t + 1) * share, rows)); });
  work(0, std::min(share, rows));
  for (auto& helper : helpers) helper.join();
}

}  // namespace dp4tl
