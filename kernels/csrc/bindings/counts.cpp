#include "bindings/register.h"

namespace dp4tl {
void register_counts(nanobind::module_&) {}
}  // namespace dp4tl
