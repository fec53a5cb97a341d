// libFuzzer: the table parser on any bytes, then every record through the reader.
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "core/file/beton.h"
#include "core/loader/record_reader.h"

using namespace dp4tl;

namespace {

struct Jobs final : RecordJobs {
  std::vector<RecordJob> all;  // the next one is the last
  bool next(RecordJob& job, bool) override {
    if (all.empty()) return false;
    job = all.back();
    all.pop_back();
    return true;
  }
  void done(const RecordJob&, const std::string&) override {}
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
  const int fd = ::memfd_create("beton", MFD_CLOEXEC);
  if (fd < 0 || ::write(fd, input, size) != static_cast<ssize_t>(size)) std::abort();
  try {
    const Beton beton("/proc/self/fd/" + std::to_string(fd));
    CropSpec crop;
    Output out;
    out.size = 16;
    std::vector<uint8_t> pixels(16 * 16 * 3);
    RecordReader reader(beton.file, crop, out, 1, false, kernels_for(best_isa()));
    Jobs jobs;
    for (size_t i = 0; i < beton.records.size() && i < 64; ++i) {
      const Record r = beton.records[i];
      if (uint32_t{r.width} * r.height > 1 << 18) continue;  // a run must stay short
      jobs.all.push_back({static_cast<int64_t>(i), r, nullptr, 0, pixels.data(), 0, 0});
    }
    reader.run(jobs);
  } catch (const Error&) {
  }
  ::close(fd);
  return 0;
}
