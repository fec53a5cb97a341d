#include "core/rows/counts.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/rows/parallel.h"

namespace dp4tl {
namespace {

constexpr int64_t kGrainElements = 1 << 16;  // smaller pieces are not worth a thread
constexpr int64_t kRanges = 8;               // of rows, per thread
constexpr int64_t kRun = 64;                 // rows that are summed in float32 before they are added to a float64 sum

int64_t grain(const Matrix& matrix) { return std::max<int64_t>(1, kGrainElements / matrix.columns); }

// Counts of one range of rows. If there are fewer cells than rows they are counted apart and added to the shared counts at the end:
// threads that add to the same cache lines row by row would wait for each other about as long as they take to find the winners.
class Counter {
 public:
  Counter(int64_t* counts, int64_t cells, int64_t rows) : counts_(counts), own_(cells <= rows ? static_cast<size_t>(cells) : 0) {}
  ~Counter() {
    flush();
    for (size_t i = 0; i < own_.size(); ++i) {
      if (own_[i]) __atomic_fetch_add(&counts_[i], own_[i], __ATOMIC_RELAXED);
    }
  }
  void add(int64_t cell) {
    if (!own_.empty()) {
      ++own_[static_cast<size_t>(cell)];
      return;
    }
    if (cell != cell_) flush();  // runs of one cell are added at once
    cell_ = cell;
    ++run_;
  }

 private:
  void flush() {
    if (run_) __atomic_fetch_add(&counts_[cell_], run_, __ATOMIC_RELAXED);
    run_ = 0;
  }
  int64_t* counts_;
  std::vector<int64_t> own_;
  int64_t cell_ = 0, run_ = 0;
};

void check_ids(const char* what, const int64_t* ids, int64_t rows, int64_t end) {
  for (int64_t i = 0; i < rows; ++i) {
    if (ids[i] >= 0 && ids[i] < end) continue;
    throw Error(std::string(what) + " " + std::to_string(ids[i]) + " of row " + std::to_string(i) +
                " is out of range: it must lie in [0, " + std::to_string(end) + ")");
  }
}

void merge(Best best, int64_t first, float* value, int64_t* index) {
  if (*index == kNan) return;
  if (best.index == kNan) {
    *value = best.value;
    *index = kNan;
  } else if (best.value > *value) {
    *value = best.value;
    *index = first + best.index;
  }
}

}  // namespace

int64_t label_counts(const Matrix& logits, const int64_t* group, int64_t groups, int64_t* counts, Execution how) {
  if (group) check_ids("group id", group, logits.rows, groups);
  const RowArgmax argmax = row_argmax(logits.scalar, how.isa);
  std::atomic<int64_t> first_nan{std::numeric_limits<int64_t>::max()};
  // Long ranges: few counters to add up, and each thread reads one stream of memory. Several per thread, in case one is delayed.
  const int64_t rows = std::max(grain(logits), logits.rows / (kRanges * how.threads) + 1);
  parallel_rows(logits.rows, how.threads, rows, [&](int64_t begin, int64_t end) {
    Counter counter(counts, groups * logits.columns, end - begin);
    for (int64_t i = begin; i < end; ++i) {
      const Best best = argmax(logits.row(i), nullptr, logits.columns);
      if (best.index != kNan) {
        counter.add((group ? group[i] : 0) * logits.columns + best.index);
        continue;
      }
      int64_t seen = first_nan.load();
      while (i < seen && !first_nan.compare_exchange_weak(seen, i)) {
      }
    }
  });
  return first_nan == std::numeric_limits<int64_t>::max() ? -1 : first_nan.load();
}

int64_t update_best(const Matrix& products, const float* offset, const float* error, const Matrix& x, const Matrix& w,
                    int64_t first, float* value, int64_t* index, Execution how) {
  const RowArgmax argmax = row_argmax(Scalar::f32, how.isa);
  const NearBest near_best = dp4tl::near_best(products.scalar, how.isa);
  const Dot dot = dot_product(x.scalar, how.isa);
  std::atomic<int64_t> decided{0};
  parallel_rows(products.rows, how.threads, grain(products), [&](int64_t begin, int64_t end) {
    std::vector<int32_t> near(products.columns);
    std::vector<float> exact(products.columns);
    int64_t here = 0;
    for (int64_t i = begin; i < end; ++i) {
      const void* xi = x.row(i);
      const float norm = std::sqrt(dot(xi, xi, x.columns));
      const int64_t count = near_best(products.row(i), offset, error, norm, products.columns, exact.data(), near.data());
      for (int64_t j = 0; j < count; ++j) exact[j] = dot(xi, w.row(near[j]), x.columns) + offset[near[j]];
      Best best = argmax(exact.data(), nullptr, count);  // `near` ascends: ties stay with the lowest column
      if (best.index != kNan) best.index = near[best.index];
      merge(best, first, value + i, index + i);
      here += count;
    }
    decided += here;
  });
  return decided;
}

void cluster_sums(const Matrix& x, const int64_t* index, int64_t clusters, double* sums, Execution how) {
  check_ids("cluster", index, x.rows, clusters);
  const AddRow add = add_row(x.scalar, how.isa);
  // Counting sort: order[start[c] .. start[c + 1]) are the rows of cluster c, ascending.
  std::vector<int64_t> start(clusters + 1, 0), order(x.rows);
  for (int64_t i = 0; i < x.rows; ++i) ++start[index[i] + 1];
  for (int64_t c = 0; c < clusters; ++c) start[c + 1] += start[c];
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int64_t i = 0; i < x.rows; ++i) order[next[index[i]]++] = i;
  parallel_rows(clusters, how.threads, 1, [&](int64_t c, int64_t) {
    double* sum = sums + c * x.columns;
    std::fill(sum, sum + x.columns, 0.0);
    std::vector<float> run(x.columns);
    for (int64_t i = start[c]; i < start[c + 1]; i += kRun) {
      std::fill(run.begin(), run.end(), 0.0f);
      for (int64_t j = i; j < std::min(i + kRun, start[c + 1]); ++j) add(x.row(order[j]), run.data(), x.columns);
      for (int64_t d = 0; d < x.columns; ++d) sum[d] += run[d];
    }
  });
}

}  // namespace dp4tl
