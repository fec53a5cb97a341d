// Compiled with the flags of the whole core: x86-64-v2 on x86-64, the compiler's default elsewhere (with NEON on 64-bit ARM).
#define DP4TL_ISA baseline
#include "core/isa/kernels.inc"
