// Compiled with this instruction set's flags (CMakeLists.txt). Do not call inline functions of the standard library here: the linker
// keeps one copy of each for the whole program, and it could be this one, which older processors cannot run.
#if defined(__x86_64__)
#define DP4TL_ISA avx512
#include "core/isa/kernels.inc"
#endif
