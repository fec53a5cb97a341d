// Compiled with this instruction set's flags (CMakeLists.txt). No inline function of the standard library may be used here: the
// linker keeps one copy of each, and it could be this one.
#if !defined(__x86_64__)
#define DP4TL_ISA generic
#define DP4TL_ISA_NAME "generic"
#include "core/isa/kernels.inc"
#endif
