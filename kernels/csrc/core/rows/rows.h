// Primitives on one row, per instruction set: argmax, screening, dot product, sum. Each has one algorithm for all sets;
// only the dot product may differ between them, in the order of its sum.
#pragma once

#include <cstdint>

#include "core/isa/isa.h"

namespace dp4tl {

enum class Scalar { f32, f16, bf16 };

struct Best {
  float value;    // NaN when the row holds a NaN
  int64_t index;  // first among equals; kNan when the row holds a NaN
};
constexpr int64_t kNan = -1;

// Largest of row[k] + offset[k] over k < n, n >= 1; offset is null for none, which 16-bit rows demand.
using RowArgmax = Best (*)(const void* row, const float* offset, int64_t n);
RowArgmax row_argmax(Scalar scalar, Isa isa);

// Screening. `row` holds products x · w[k], each off by up to norm * error[k] from what `Dot` gives, and then rounded to
// the type of `products`. Writes the columns whose Dot + offset[k] may be the largest, ascending, to `out` and returns how
// many: all n when a bound is not finite. `scratch` and `out` have room for n. `products` is f32 or bf16.
using NearBest = int64_t (*)(const void* row, const float* offset, const float* error, float norm, int64_t n, float* scratch,
                             int32_t* out);
NearBest near_best(Scalar products, Isa isa);

// Sum of a[i] * b[i], i < n, in float32.
using Dot = float (*)(const void* a, const void* b, int64_t n);
Dot dot_product(Scalar scalar, Isa isa);

// sum[i] += row[i], i < n, in float32.
using AddRow = void (*)(const void* row, float* sum, int64_t n);
AddRow add_row(Scalar scalar, Isa isa);

}  // namespace dp4tl
