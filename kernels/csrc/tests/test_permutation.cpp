// The order of an epoch: NumPy's, and a permutation at every length around the block that is drawn ahead.
#include "core/loader/permutation.h"

#include <algorithm>
#include <vector>

#include "tests/check.h"

using namespace dp4tl;

int main() {
  const std::vector<int64_t> numpys = {8, 4, 5, 3, 6, 0, 9, 7, 1, 2};  // Generator(Philox(key=[7, 3])).permutation(10)
  std::vector<int64_t> ten(10);
  permute(7, 3, ten.data(), 10);
  CHECK(ten == numpys);
  for (int64_t n : {0, 1, 2, 63, 64, 65, 66, 127, 128, 129, 1000}) {
    std::vector<int64_t> order(static_cast<size_t>(n) + 1, -7);  // one more, which stays
    permute(5, 6, order.data(), n);
    CHECK(order.back() == -7);
    order.pop_back();
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < n; ++i) CHECK(order[static_cast<size_t>(i)] == i);
  }
}
