// Split rows over threads.
#pragma once

#include <cstdint>
#include <functional>

namespace dp4tl {

// Calls work(begin, end) on disjoint ranges of up to `grain` rows that cover [0, rows), on up to `threads` threads, and
// returns when all are done. Ranges are handed out as threads become free. `work` must not throw.
void parallel_rows(int64_t rows, int64_t threads, int64_t grain, const std::function<void(int64_t, int64_t)>& work);

}  // namespace dp4tl
