// The threads: whole epochs, abandoned ones, one by one and read ahead, in memory of their own and lent, and a file that
// shrinks meanwhile.
#include "core/loader/loader.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
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
      const uint8_t* pixels = batch->images.get() + i * 12 * 12 * 3;
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

// Memory of exactly `bytes`, so that the sanitizer sees a byte too much; releasing it takes the loader's lock.
std::shared_ptr<uint8_t> heap(Loader& loader, size_t bytes, std::atomic<int>& alive) {
  ++alive;
  return {static_cast<uint8_t*>(std::malloc(bytes)), [&loader, &alive](uint8_t* p) {
            loader.profile();
            std::free(p);
            --alive;
          }};
}

bool refuses(const std::function<void()>& what, const char* why) {
  try {
    what();
  } catch (const Error& error) {
    return std::string(error.what()).find(why) != std::string::npos;
  }
  return false;
}

// Options that make no sense are refused by name, before a thread is started.
void bad_options(const std::shared_ptr<const Beton>& beton) {
  const auto refused = [&](const std::function<void(LoaderOptions&)>& change, const char* why) {
    LoaderOptions o = options(1);
    change(o);
    CHECK(refuses([&] { Loader loader(beton, o); }, why), "%s", why);
  };
  refused([](LoaderOptions& o) { o.output.size = 0; }, "size = 0, but it must be at least 1");
  refused([](LoaderOptions& o) { o.views = 0; }, "views = 0");
  refused([](LoaderOptions& o) { o.threads = -2; }, "threads = -2");
  refused([](LoaderOptions& o) { o.batch_size = 0; }, "batch_size = 0");
  refused([](LoaderOptions& o) { o.depth = 0; }, "depth = 0");
  refused([](LoaderOptions& o) { o.crop.scale = {0.5, 0.25}; }, "scale = (0.5");
  refused([](LoaderOptions& o) { o.crop.scale = {0.5, 1.5}; }, "at most 1");
  refused([](LoaderOptions& o) { o.crop.aspect = {0, 1}; }, "aspect = (0.0");
  refused([](LoaderOptions& o) { o.crop.crop_ratio = NAN; }, "crop_ratio = nan");
  refused([](LoaderOptions& o) { o.isa = "mmx"; }, "instruction set 'mmx' is unknown");
}

// The consumer lends memory for `ahead` batches more than it has taken.
void lent(const std::shared_ptr<const Beton>& beton, int threads, int views, int64_t ahead) {
  const int64_t n = 400, batches = (n + 6) / 7;
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  LoaderOptions o = options(threads);
  o.lent = true, o.views = views;
  std::atomic<int> alive{0};
  {
    Loader loader(beton, o);
    const size_t bytes = loader.batch_bytes();
    CHECK(bytes == static_cast<size_t>(views) * 7 * 12 * 12 * 3);
    for (uint32_t epoch = 0; epoch < 20; ++epoch) {
      loader.start(order, steps(n, 7), {}, epoch);
      Loader::Status status = Loader::Status::kBatch;
      const int64_t most = epoch % 2 ? batches : epoch;
      int64_t records = 0;
      for (int64_t b = 0, given = 0; b < most; ++b) {
        for (; given < std::min(batches, b + ahead); ++given) loader.lend(heap(loader, bytes, alive), bytes);
        records += consume(loader, 1, status);
        CHECK(alive <= ahead, "%d", alive.load());
      }
      CHECK(records == (epoch % 2 ? n : 7 * static_cast<int64_t>(epoch)));
      if (epoch % 2) CHECK(alive == 0);
      if (epoch % 4 == 0) {
        loader.stop();
        CHECK(alive == 0);
      }
    }
    loader.start(order, steps(n, 7), {}, 20);
    std::shared_ptr<Batch> batch;
    CHECK(refuses([&] { loader.next(1000, batch); }, "no memory was lent"));
    std::vector<uint8_t> other(bytes + 64);
    const auto there = [&](size_t at) { return std::shared_ptr<uint8_t>(other.data() + at, [](uint8_t*) {}); };
    CHECK(refuses([&] { loader.lend(there(0), bytes - 1); }, "bytes, but"));
    CHECK(refuses([&] { loader.lend(there(1), bytes); }, "aligned"));
    loader.lend(heap(loader, bytes, alive), bytes);
  }
  CHECK(alive == 0, "%d are left", alive.load());
  Loader own(beton, options(1));
  CHECK(refuses([&] { own.lend(nullptr, 1 << 20); }, "its own memory"));
}

}  // namespace

int main() {
  const Temporary file(make_beton(layout()));
  const auto beton = std::make_shared<const Beton>(file.path);
  for (const int threads : {1, 2, 5}) {
    epochs(beton, threads, {});
    epochs(beton, threads, steps(400, 60));
  }
  for (const int threads : {1, 4}) {
    lent(beton, threads, 1, 1);
    lent(beton, threads, 2, 3);
    lent(beton, threads, 1, 10);
  }
  bad_options(beton);
  shrinking({});
  shrinking(steps(400, 60));
  std::printf("good\n");
}
