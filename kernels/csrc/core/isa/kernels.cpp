#include "core/isa/kernels.h"

#include "core/error.h"

namespace dp4tl {

#if defined(__x86_64__)
namespace x86_64_v2 { extern const Kernels kKernels; }
namespace avx2 { extern const Kernels kKernels; }
namespace avx512 { extern const Kernels kKernels; }

static std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> sets;
  __builtin_cpu_init();
  // What else x86-64-v3 asks for (F16C, LZCNT, MOVBE) came with these in every processor, and clang cannot ask for it.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("bmi");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (v4) sets.push_back(&avx512::kKernels);
  if (v3) sets.push_back(&avx2::kKernels);
  sets.push_back(&x86_64_v2::kKernels);
  return sets;
}
#else
namespace generic { extern const Kernels kKernels; }
static std::vector<const Kernels*> runnable() { return {&generic::kKernels}; }
#endif

const Kernels& kernels_for(const std::string& name) {
  for (const Kernels* set : runnable()) {
    if (name == "auto" || name == set->name) return *set;
  }
  std::string known;
  for (const auto& isa : supported_isas()) known += (known.empty() ? "" : ", ") + isa;
  throw Error("instruction set '" + name + "' is unknown or not to be had on this processor. Here are: auto, " + known);
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Kernels* set : runnable()) names.emplace_back(set->name);
  return names;
}

}  // namespace dp4tl
