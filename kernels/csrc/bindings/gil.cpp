#include "bindings/gil.h"

#include <unistd.h>

// What the unwinder asks at take_gil's frame. `catch (abi::__forced_unwind&)` would do in GCC's C++ runtime alone: another one, linked
// into a wheel, cannot read the state of the unwinder that pthread_exit uses (libgcc's), and crashes. This one need not read it.
extern "C" __attribute__((used, visibility("hidden"))) int dp4tl_sleep_instead(int, int, unsigned long long, void*, void*) {
  for (;;) ::pause();
}

namespace dp4tl {

__attribute__((noinline)) void take_gil(PyThreadState* state) {
  PyEval_RestoreThread(state);
  // 0x1b: the address is relative, 4 bytes. After the call, which must not become a jump: this frame would be gone.
  asm volatile(".cfi_personality 0x1b, dp4tl_sleep_instead" ::: "memory");
}

}  // namespace dp4tl
