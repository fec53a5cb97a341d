// Python seam of core/rows/counts.h. Shapes and dtypes are checked here; values (group ids) by the callers in Python.
#include "core/rows/counts.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bindings/register.h"

namespace nb = nanobind;

namespace dp4tl {
namespace {

using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using Offsets = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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
  require(static_cast<int64_t>(counts.shape(1)) == matrix.columns, "counts must have a column for every class");
  require(group ? group->shape(0) == logits.shape(0) : counts.shape(0) == 1, "one group id a row, or a single group");
  const int64_t* ids = group ? group->data() : nullptr;
  const auto groups = static_cast<int64_t>(counts.shape(0));
  for (int64_t i = 0; ids && i < matrix.rows; ++i)
    if (ids[i] < 0 || ids[i] >= groups) throw std::invalid_argument("group id out of range");
  const Execution how = execution(threads, isa);
  nb::gil_scoped_release release;
  return label_counts(matrix, ids, groups, counts.data(), how);
}

void check_running(const Rows& scores, const Offsets& offset, const Values& value, const Indices& index) {
  require(offset.shape(0) == scores.shape(1), "one offset a column");
  require(value.shape(0) == scores.shape(0) && index.shape(0) == scores.shape(0), "one value and index a row");
}

void py_update_best(const Rows& scores, const Offsets& offset, int64_t first, Values value, Indices index, int threads,
                    const std::string& isa) {
  const Matrix matrix = matrix_of(scores);
  check_running(scores, offset, value, index);
  require(matrix.scalar == Scalar::f32, "scores must be float32");
  const Execution how = execution(threads, isa);
  nb::gil_scoped_release release;
  update_best(matrix, offset.data(), first, value.data(), index.data(), how);
}

int64_t py_update_best_screened(const Rows& products, const Offsets& offset, const Offsets& error, const Rows& x,
                                const Rows& w, int64_t first, Values value, Indices index, int threads,
                                const std::string& isa) {
  const Matrix matrix = matrix_of(products), features = matrix_of(x), weights = matrix_of(w);
  check_running(products, offset, value, index);
  require(error.shape(0) == products.shape(1), "one error a column");
  require(matrix.scalar == Scalar::bf16, "products must be bfloat16");
  require(features.scalar == weights.scalar, "x and w must have one dtype");
  require(features.rows == matrix.rows && weights.rows == matrix.columns && features.columns == weights.columns,
          "shapes of products, x and w do not fit");
  const Execution how = execution(threads, isa);
  nb::gil_scoped_release release;
  return update_best_screened(matrix, offset.data(), error.data(), features, weights, first, value.data(), index.data(),
                              how);
}

void py_cluster_sums(const Rows& x, const Ids& index, Sums sums, int threads, const std::string& isa) {
  const Matrix matrix = matrix_of(x);
  require(index.shape(0) == x.shape(0), "one cluster a row");
  require(sums.shape(1) == x.shape(1), "sums must have a column for every column of x");
  const auto clusters = static_cast<int64_t>(sums.shape(0));
  const int64_t* ids = index.data();
  for (int64_t i = 0; i < matrix.rows; ++i) require(ids[i] >= 0 && ids[i] < clusters, "cluster out of range");
  const Execution how = execution(threads, isa);
  nb::gil_scoped_release release;
  cluster_sums(matrix, ids, clusters, sums.data(), how);
}

}  // namespace

void register_counts(nb::module_& m) {
  m.def("label_counts", &py_label_counts, nb::arg("logits"), nb::arg("group").none(), nb::arg("counts"),
        nb::arg("threads"), nb::arg("isa") = "auto", "See core/rows/counts.h.");
  m.def("update_best", &py_update_best, nb::arg("scores"), nb::arg("offset"), nb::arg("first"), nb::arg("value"),
        nb::arg("index"), nb::arg("threads"), nb::arg("isa") = "auto", "See core/rows/counts.h.");
  m.def("update_best_screened", &py_update_best_screened, nb::arg("products"), nb::arg("offset"), nb::arg("error"),
        nb::arg("x"), nb::arg("w"), nb::arg("first"), nb::arg("value"), nb::arg("index"), nb::arg("threads"),
        nb::arg("isa") = "auto", "See core/rows/counts.h.");
  m.def("cluster_sums", &py_cluster_sums, nb::arg("x"), nb::arg("index"), nb::arg("sums"), nb::arg("threads"),
        nb::arg("isa") = "auto", "See core/rows/counts.h.");
}

}  // namespace dp4tl
