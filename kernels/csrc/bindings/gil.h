// Long work without Python's global lock.
#pragma once

#include <Python.h>

namespace dp4tl {

// PyEval_RestoreThread, but a thread that Python wants to end sleeps instead, as in Python 3.14, until the process is gone.
void take_gil(PyThreadState* state);

// Releases the lock for a scope. Unlike nb::gil_scoped_release it may be used in a daemon thread: before Python 3.14, taking the lock
// back while the interpreter ends makes such a thread exit by unwinding its stack, and a destructor that lets nothing pass would abort
// the process.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ~ReleaseGil() { take_gil(state_); }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  PyThreadState* const state_;
};

}  // namespace dp4tl
