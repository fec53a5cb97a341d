// Row reductions: every instruction set against a plain loop, at every length around a vector and every alignment.
// Run with -DDP4TL_SANITIZE=ON this also shows that no variant reads beyond a row.
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/rows/counts.h"
#include "tests/check.h"

using namespace dp4tl;

namespace {

uint16_t bf16(float x) {  // small integers only: exact
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

uint16_t f16(float x) {  // small integers, infinities and NaNs only
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  if (std::isnan(x)) return sign | 0x7e00;
  if (std::isinf(x)) return sign | 0x7c00;
  int exponent = 0;
  const float fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1), or 0
  return x == 0 ? sign : static_cast<uint16_t>(sign | ((exponent + 14) << 10) | (static_cast<int>(fraction * 2048) & 1023));
}

Best plain(const std::vector<float>& row) {
  Best best = {-INFINITY, 0};
  for (size_t k = 0; k < row.size(); ++k) {
    if (std::isnan(row[k])) return {NAN, kNan};
    if (row[k] > best.value) best = {row[k], static_cast<int64_t>(k)};
  }
  return best;
}

// Rows live in memory of exactly their size, so that the address sanitizer sees a read beyond the end.
template <class T, class Convert>
void check_rows(Scalar scalar, Isa isa, std::mt19937& random, Convert convert) {
  for (int n = 1; n < 200; ++n) {
    for (int shift = 0; shift < 3; ++shift) {
      std::vector<float> row(n);
      for (float& x : row) x = static_cast<float>(static_cast<int>(random() % 9) - 4);
      if (random() % 4 == 0) row[random() % n] = random() % 2 ? NAN : -NAN;
      if (random() % 4 == 0) row[random() % n] = random() % 2 ? INFINITY : -INFINITY;
      std::unique_ptr<T[]> memory(new T[n + shift]);
      for (int k = 0; k < n; ++k) memory[shift + k] = convert(row[k]);
      const Best got = row_argmax(scalar, isa)(memory.get() + shift, nullptr, n), expected = plain(row);
      CHECK(got.index == expected.index, "%s: n %d shift %d: %ld, expected %ld", name_of(isa), n, shift,
            static_cast<long>(got.index), static_cast<long>(expected.index));
      CHECK(got.index == kNan || got.value == expected.value, "%s: n %d", name_of(isa), n);
    }
  }
}

bool refuses(const std::function<void()>& what, const char* why) {
  try {
    what();
  } catch (const Error& error) {
    return std::string(error.what()).find(why) != std::string::npos;
  }
  return false;
}

void check_ids() {
  const std::vector<float> rows = {1, 2, 3, 4};
  const Matrix matrix = {rows.data(), Scalar::f32, 2, 2, 2};
  std::vector<int64_t> counts(4, 0);
  std::vector<double> sums(4, 0);
  for (const int64_t bad : {INT64_MIN, int64_t{-1}, int64_t{2}, INT64_MAX}) {
    const int64_t ids[2] = {1, bad};
    const std::string why = std::to_string(bad) + " of row 1 is out of range: it must lie in [0, 2)";
    CHECK(refuses([&] { label_counts(matrix, ids, 2, counts.data(), {1, best_isa()}); }, ("group id " + why).c_str()));
    CHECK(refuses([&] { cluster_sums(matrix, ids, 2, sums.data(), {1, best_isa()}); }, ("cluster " + why).c_str()));
  }
  CHECK(counts == std::vector<int64_t>(4, 0), "counted before the check");
}

void check_threads() {
  const int64_t rows = 5000, classes = 37;
  std::vector<float> logits(rows * classes);
  std::vector<int64_t> group(rows), one(3 * classes), many(3 * classes);
  std::mt19937 random(2);
  for (float& x : logits) x = static_cast<float>(random() % 5);
  for (int64_t& g : group) g = random() % 3;
  const Matrix matrix = {logits.data(), Scalar::f32, rows, classes, classes};
  CHECK(label_counts(matrix, group.data(), 3, one.data(), {1, Isa::baseline}) == -1);
  CHECK(label_counts(matrix, group.data(), 3, many.data(), {5, best_isa()}) == -1);
  CHECK(one == many);
  logits[4321 * classes + 5] = logits[1234 * classes + 9] = NAN;
  CHECK(label_counts(matrix, group.data(), 3, many.data(), {5, best_isa()}) == 1234);
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const Isa isa : supported_isas()) {
    check_rows<float>(Scalar::f32, isa, random, [](float x) { return x; });
    check_rows<uint16_t>(Scalar::f16, isa, random, f16);
    check_rows<uint16_t>(Scalar::bf16, isa, random, bf16);
  }
  check_ids();
  check_threads();
  return 0;
}
