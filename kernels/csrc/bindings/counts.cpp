// dp4tl_fast.kernels._native: core/rows/counts.h on matrices of any array library. Shapes and dtypes are checked here.
#include "core/rows/counts.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bindings/gil.h"
#include "bindings/register.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {
namespace {

// nb::pytorch is for the stub; any library that speaks DLPack is accepted.
using Rows = nb::ndarray<nb::pytorch, nb::ro, nb::ndim<2>, nb::device::cpu>;
using Offsets = nb::ndarray<nb::pytorch, const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<nb::pytorch, const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<nb::pytorch, int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<nb::pytorch, double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<nb::pytorch, float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<nb::pytorch, int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

Scalar scalar_of(nb::dlpack::dtype type) {
  const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
  if (type.lanes == 1 && code == nb::dlpack::dtype_code::Float && type.bits == 32) return Scalar::f32;
  if (type.lanes == 1 && code == nb::dlpack::dtype_code::Float && type.bits == 16) return Scalar::f16;
  if (type.lanes == 1 && code == nb::dlpack::dtype_code::Bfloat && type.bits == 16) return Scalar::bf16;
  throw std::invalid_argument("expected float32, float16 or bfloat16");
}

Matrix matrix_of(const Rows& rows) {
  require(rows.shape(1) >= 1, "a matrix must have at least one column");
  require(rows.stride(1) == 1 || rows.shape(1) == 1 || rows.shape(0) == 0, "rows must be contiguous");
  return {rows.data(), scalar_of(rows.dtype()), static_cast<int64_t>(rows.shape(0)),
          static_cast<int64_t>(rows.shape(1)), rows.stride(0)};
}

Execution execution(int threads, const std::string& isa) {
  require(threads >= 1, "threads must be positive");
  return {threads, isa_named(isa)};
}

int64_t py_label_counts(const Rows& logits, const std::optional<Ids>& group, Counts counts, int threads,
                        const std::string& isa) {
  const Matrix matrix = matrix_of(logits);
  require(static_cast<int64_t>(counts.shape(1)) == matrix.columns, "counts must have one column per class");
  require(group ? group->shape(0) == logits.shape(0) : counts.shape(0) == 1, "there must be one group id per row, or a single group");
  const int64_t* ids = group ? group->data() : nullptr;
  const auto groups = static_cast<int64_t>(counts.shape(0));
  const Execution how = execution(threads, isa);
  ReleaseGil release;
  return label_counts(matrix, ids, groups, counts.data(), how);
}

int64_t py_update_best(const Rows& products, const Offsets& offset, const Offsets& error, const Rows& x, const Rows& w,
                       int64_t first, Values value, Indices index, int threads, const std::string& isa) {
  const Matrix matrix = matrix_of(products), features = matrix_of(x), weights = matrix_of(w);
  require(offset.shape(0) == products.shape(1), "there must be one offset per column");
  require(error.shape(0) == products.shape(1), "there must be one error per column");
  require(value.shape(0) == products.shape(0) && index.shape(0) == products.shape(0), "there must be one value and one index per row");
  require(matrix.scalar != Scalar::f16, "products must be float32 or bfloat16");
  require(features.scalar == weights.scalar, "x and w must have the same dtype");
  require(features.rows == matrix.rows && weights.rows == matrix.columns && features.columns == weights.columns,
          "shapes of products, x and w do not fit");
  const Execution how = execution(threads, isa);
  ReleaseGil release;
  return update_best(matrix, offset.data(), error.data(), features, weights, first, value.data(), index.data(), how);
}

void py_cluster_sums(const Rows& x, const Ids& index, Sums sums, int threads, const std::string& isa) {
  const Matrix matrix = matrix_of(x);
  require(index.shape(0) == x.shape(0), "there must be one cluster per row");
  require(sums.shape(1) == x.shape(1), "sums must have as many columns as x");
  const auto clusters = static_cast<int64_t>(sums.shape(0));
  const Execution how = execution(threads, isa);
  ReleaseGil release;
  cluster_sums(matrix, index.data(), clusters, sums.data(), how);
}

}  // namespace

// Results go to arrays of the caller's (noconvert: a converted copy would swallow them).
void register_counts(nb::module_& m) {
  m.def("label_counts", &py_label_counts, "logits"_a, "group"_a.none(), "counts"_a.noconvert(), "threads"_a, "isa"_a = "auto",
        "counts[group[i], argmax of row i] += 1; the first row with a NaN, or -1. See core/rows/counts.h.");
  m.def("update_best", &py_update_best, "products"_a, "offset"_a, "error"_a, "x"_a, "w"_a, "first"_a, "value"_a.noconvert(),
        "index"_a.noconvert(), "threads"_a, "isa"_a = "auto",
        "Running argmax over blocks of columns; how many scores were computed again. See core/rows/counts.h.");
  m.def("cluster_sums", &py_cluster_sums, "x"_a, "index"_a, "sums"_a.noconvert(), "threads"_a, "isa"_a = "auto",
        "Sums of the rows of each cluster. See core/rows/counts.h.");
}

}  // namespace dp4tl
