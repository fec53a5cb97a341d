#include "core/isa/kernels.h"

namespace dp4tl {

namespace baseline { extern const Kernels kKernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kKernels; }
namespace avx512 { extern const Kernels kKernels; }
#endif

const Kernels& kernels_for(Isa isa) {
  static const Kernels* const table[] = {
      &baseline::kKernels,
#if defined(__x86_64__)
      &avx2::kKernels,
      &avx512::kKernels,
#endif
  };
  static_assert(sizeof table / sizeof *table == kIsaCount, "one entry per instruction set");
  return *table[static_cast<int>(isa)];
}

}  // namespace dp4tl
