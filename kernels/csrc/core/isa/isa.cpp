#include "core/isa/isa.h"

#include "core/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace dp4tl {
namespace {

#if defined(__x86_64__)
// The processor itself is asked: what __builtin_cpu_supports reads is filled in by GCC's runtime, and stays empty under zig's.
struct Features {
  bool v3 = false, v4 = false, bf16 = false;

  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return;
    const bool fma = c & bit_FMA;
    unsigned saved, high;  // the registers that the operating system saves; xgetbv has no intrinsic without -mxsave
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const unsigned subleaves = a;
    const auto all = [](unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; };
    // F16C, LZCNT and MOVBE, which x86-64-v3 also requires, exist on every processor that has these.
    v3 = fma && all(saved, 0x06) && all(b, bit_AVX2 | bit_BMI | bit_BMI2);
    v4 = v3 && all(saved, 0xe6) && all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
    bf16 = v4 && subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & bit_AVX512BF16;
  }
};

const Features& features() {
  static const Features found;
  return found;
}
#endif

Isa probe() {
#if defined(__x86_64__)
  if (features().v4) return Isa::avx512;
  if (features().v3) return Isa::avx2;
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
  return features().bf16;
#else
  return false;
#endif
}

}  // namespace dp4tl
