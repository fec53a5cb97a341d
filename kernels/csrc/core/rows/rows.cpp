// Which instruction set computes a row.
#include "core/rows/rows_plain.h"

namespace dp4tl {
namespace {

using namespace rows;

const Table kBaseline = {
    {argmax_baseline<float>, argmax_baseline<F16>, argmax_baseline<Bf16>},
    {dot_baseline<float>, dot_baseline<F16>, dot_baseline<Bf16>},
    {add_baseline<float>, add_baseline<F16>, add_baseline<Bf16>},
    {near_best_baseline<float>, nullptr, near_best_baseline<Bf16>},
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
NearBest near_best(Scalar products, Isa isa) { return table(isa).near_best[static_cast<int>(products)]; }

}  // namespace dp4tl
