// Long work without Python's global lock.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace dp4tl {

// Releases the lock for a scope. Unlike nb::gil_scoped_release it may be used in a daemon thread: before Python 3.14, taking the lock
// back while the interpreter ends makes such a thread exit by unwinding its stack, and a destructor that lets nothing pass would abort
// the process. Here the thread sleeps instead, as in 3.14, until the process is gone.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ~ReleaseGil() { take(); }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  void take() {
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
      for (;;) ::pause();
    }
  }

  PyThreadState* const state_;
};

}  // namespace dp4tl
