// Instruction sets: which there are, and which this processor supports. Hot loops are compiled once per set and listed in
// tables that are indexed by Isa.
#pragma once

#include <string>
#include <vector>

namespace dp4tl {

// From plain to best: each includes the ones before it. `baseline` is what the whole core is compiled for (x86-64-v2 on x86-64), and
// the only one on other processors.
enum class Isa {
  baseline,
#if defined(__x86_64__)
  avx2,
  avx512,
#endif
};

constexpr const char* kIsaNames[] = {
    "baseline",
#if defined(__x86_64__)
    "avx2",
    "avx512",
#endif
};
constexpr int kIsaCount = sizeof kIsaNames / sizeof *kIsaNames;

inline const char* name_of(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

Isa best_isa();  // that this processor supports
std::vector<Isa> supported_isas();  // from plain to best

// By name; "auto" is the best. Throws Error if it is unknown or not supported.
Isa isa_named(const std::string& name);

// Whether this processor multiplies bfloat16 in hardware.
bool has_bf16_products();

}  // namespace dp4tl
