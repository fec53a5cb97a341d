// The dispatcher: names, their order, and what an unknown one is told.
#include "core/isa/isa.h"

#include <algorithm>

#include "core/error.h"
#include "core/isa/kernels.h"
#include "tests/check.h"

using namespace dp4tl;

namespace {

std::string refusal(const std::string& name) {
  try {
    isa_named(name);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

int main() {
  const std::vector<Isa> sets = supported_isas();
  CHECK(sets.front() == Isa::baseline && sets.back() == best_isa() && std::is_sorted(sets.begin(), sets.end()));
  CHECK(isa_named("auto") == best_isa());
  std::string available = "auto";
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (std::count(sets.begin(), sets.end(), isa) == 1) {
      CHECK(isa_named(name_of(isa)) == isa && kernels_for(isa).isa == isa, "%s", name_of(isa));
      available += std::string(", ") + name_of(isa);
    } else {
      CHECK(!refusal(name_of(isa)).empty(), "%s", name_of(isa));
    }
  }
  for (const std::string name : {"mmx", "", "AVX2", "generic"}) {
    const std::string expected = "instruction set '" + name + "' is unknown or not supported on this CPU. Available: " + available;
    CHECK(refusal(name) == expected, "%s", refusal(name).c_str());
  }
  std::printf("best: %s\n", name_of(best_isa()));
}
