// Which instruction set computes a row.
#include "core/rows/rows_plain.h"

namespace dp4tl {
namespace {

using namespace rows;

const Table kBaseline = {
    {argmax_baseline<float>, argmax_baseline<F16>, argmax_baseline<Bf16>},
    {dot_baseline<float>, dot_baseline<F16>, dot_baseline<Bf16>},
    {add_baseline<float>, add_baseline<F16>, add_baseline<Bf16>},
    near_best_baseline,
};

const Table& table(Isa isa) {
  static const Table* const tables[] = {
      &kBaseline,
#if defined(__x86_64__)
      &kAvx2,
      &kAvx512,
#endif
  };
  static_assert(sizeof tables / sizeof *tables == kIsaCount, "one entry per instruction set");
  return *tables[static_cast<int>(isa)];
}

}  // namespace

RowArgmax row_argmax(Scalar scalar, Isa isa) { return table(isa).argmax[static_cast<int>(scalar)]; }
Dot dot_product(Scalar scalar, Isa isa) { return table(isa).dot[static_cast<int>(scalar)]; }
AddRow add_row(Scalar scalar, Isa isa) { return table(isa).add[static_cast<int>(scalar)]; }

int64_t near_best(const uint16_t* row, const float* offset, const float* error, float norm, int64_t n, float* scratch,
                  int32_t* out, Isa isa) {
  return table(isa).near_best(reinterpret_cast<const Bf16*>(row), offset, error, norm, n, scratch, out);
}

}  // namespace dp4tl
