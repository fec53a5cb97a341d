// The threads: whole epochs, abandoned ones, one by one and read ahead, and a file that shrinks meanwhile.
#include "core/loader.h"

#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "tests/betons.h"
#include "tests/check.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

Layout layout() {
  Layout l;
  l.records = 400, l.width = 40, l.height = 30;
  return l;
}

LoaderOptions options(int threads) {
  LoaderOptions o;
  o.output.size = 12;
  o.batch_size = 7;
  o.threads = threads;
  return o;
}

std::vector<int64_t> steps(int64_t n, int64_t step) {
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i < n; i += step) bounds.push_back(i);
  bounds.push_back(n);
  return bounds;
}

// Batches until the end or a failure; checks that every pixel is its record's.
int64_t consume(Loader& loader, int64_t most, Loader::Status& status) {
  int64_t records = 0;
  for (int64_t b = 0; b < most; ++b) {
    std::shared_ptr<Batch> batch;
    do {
      status = loader.next(1000, batch);
    } while (status == Loader::Status::kTimeout);
    if (status != Loader::Status::kBatch) break;
    for (size_t i = 0; i < batch->index.size(); ++i) {
      const auto* pixels = static_cast<const uint8_t*>(batch->images->data) + i * 12 * 12 * 3;
      const int expected = static_cast<int>((batch->index[i] - 100) % 256);
      CHECK(std::all_of(pixels, pixels + 12 * 12 * 3, [&](int p) { return p == expected; }), "record %d", expected);
    }
    records += static_cast<int64_t>(batch->index.size());
  }
  return records;
}

void epochs(const std::shared_ptr<const Beton>& beton, int threads, const std::vector<int64_t>& windows) {
  const auto n = static_cast<int64_t>(beton->records.size());
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin(), order.end());
  Loader loader(beton, options(threads));
  Loader::Status status;
  for (uint32_t epoch = 0; epoch < 20; ++epoch) {
    loader.start(order, steps(n, 7), windows, epoch);
    if (epoch % 2) {
      CHECK(consume(loader, 1000, status) == n && status == Loader::Status::kEnd);
    } else {
      consume(loader, epoch, status);  // and abandon it: by start(), stop() or the destructor
      if (epoch % 4) loader.stop();
    }
  }
  loader.start(order, steps(n, 7), windows, 20);
}

void shrinking(const std::vector<int64_t>& windows) {
  const Layout l = layout();
  Temporary file(make_beton(l));
  const auto beton = std::make_shared<const Beton>(file.path);
  Loader loader(beton, options(2));
  std::vector<int64_t> order(l.records);
  std::iota(order.begin(), order.end(), 0);
  CHECK(::truncate(file.path, static_cast<off_t>(l.data() + l.records / 2 * l.payload())) == 0);
  loader.start(order, steps(static_cast<int64_t>(l.records), 7), windows, 0);
  Loader::Status status;
  consume(loader, 1000, status);
  CHECK(status == Loader::Status::kFailed);
  CHECK(loader.failure().message.find("truncated") != std::string::npos, "%s", loader.failure().message.c_str());
}

}  // namespace

int main() {
  const Temporary file(make_beton(layout()));
  const auto beton = std::make_shared<const Beton>(file.path);
  for (const int threads : {1, 2, 5}) {
    epochs(beton, threads, {});
    epochs(beton, threads, steps(400, 60));
  }
  shrinking({});
  shrinking(steps(400, 60));
  std::printf("good\n");
}
