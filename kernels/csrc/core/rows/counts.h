// Row reductions behind label_counts and nearest_centroid: argmax of each row, histogram of the winners.
#pragma once

#include <cstdint>

#include "core/rows/rows.h"

namespace dp4tl {

// A [rows, columns] matrix whose rows are contiguous and `stride` elements apart.
struct Matrix {
  const void* data;
  Scalar scalar;
  int64_t rows, columns, stride;
  const void* row(int64_t i) const {
    return static_cast<const char*>(data) + i * stride * (scalar == Scalar::f32 ? 4 : 2);
  }
};

struct Execution {
  int threads;
  Isa isa;
};

// counts[group[i], argmax of row i] += 1 for every row without a NaN; counts is [groups, columns]. `group` may be null (one
// group). Returns the first row with a NaN, or -1. Throws Error if an id is not in [0, groups).
int64_t label_counts(const Matrix& logits, const int64_t* group, int64_t groups, int64_t* counts, Execution how);

// Running argmax of x[i] · w[k] + offset[k] over blocks of columns: where the best score of this block is larger than
// value[i], replace value[i] and index[i] (columns counted from `first`). A row with a NaN gets value NaN and index kNan,
// and keeps them.
//
// `products` of x [rows, depth] and w [columns, depth] screen the columns: each is off by up to ‖x[i]‖ * error[k] from the
// dot product in float32, and then rounded to its type, f32 or bf16. Every column that may be the best of its row is
// computed again from x and w, so that the results are the same bits whatever computed the products. Returns how many
// columns were computed again.
int64_t update_best(const Matrix& products, const float* offset, const float* error, const Matrix& x, const Matrix& w,
                    int64_t first, float* value, int64_t* index, Execution how);

// sums[c] = sum of the rows i of x with index[i] == c. The order of summation, and so every bit, depends on the input alone: rows of
// a cluster in turn, in float32 over short runs, in float64 over those. Throws Error if an index is not in [0, clusters).
void cluster_sums(const Matrix& x, const int64_t* index, int64_t clusters, double* sums, Execution how);

}  // namespace dp4tl
