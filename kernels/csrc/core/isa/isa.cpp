#include "core/isa/isa.h"

#include "core/error.h"

namespace dp4tl {
namespace {

Isa probe() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // F16C, LZCNT and MOVBE, which x86-64-v3 also requires, exist on every processor that has these, and clang cannot test for them.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (v4) return Isa::avx512;
  if (v3) return Isa::avx2;
#endif
  return Isa::baseline;
}

}  // namespace

Isa best_isa() {
  static const Isa best = probe();
  return best;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> sets;
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) sets.push_back(static_cast<Isa>(i));
  return sets;
}

Isa isa_named(const std::string& name) {
  if (name == "auto") return best_isa();
  std::string known;
  for (const Isa isa : supported_isas()) {
    if (name == name_of(isa)) return isa;
    known += std::string(", ") + name_of(isa);
  }
  throw Error("instruction set '" + name + "' is unknown or not supported on this CPU. Available: auto" + known);
}

bool has_bf16_products() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace dp4tl
