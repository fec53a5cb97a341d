// dp4tl_fast.kernels._native: which instruction sets the hot loops may use here.
#include "core/isa/isa.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/register.h"

namespace nb = nanobind;

namespace dp4tl {

void register_isa(nb::module_& m) {
  m.def("isas",
        [] {
          std::vector<std::string> names;
          for (const Isa isa : supported_isas()) names.emplace_back(name_of(isa));
          return names;
        },
        "Names of the instruction sets that this CPU supports, from plain to best.");
  m.def("has_bf16_products", &has_bf16_products, "Whether the CPU multiplies bfloat16 in hardware.");
}

}  // namespace dp4tl
