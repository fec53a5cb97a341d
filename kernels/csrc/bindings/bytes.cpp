// dp4tl_fast.kernels._native: checksums of payloads, and memory for many of them.
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "bindings/gil.h"
#include "bindings/register.h"
#include "core/file/crc32.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<uint32_t> crc32s(const std::vector<Bytes>& payloads) {
  std::vector<uint32_t> found(payloads.size());
  ReleaseGil free;
  for (size_t i = 0; i < found.size(); ++i) found[i] = crc32(payloads[i].data(), payloads[i].size());
  return found;
}

// What a thread frees stays with it up to 64 MiB, and is not mapped anew: the kernel clears each page that it maps.
void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most there is
#endif
}

}  // namespace

void register_bytes(nb::module_& m) {
  m.def("has_fast_crc32", &has_fast_crc32, "Whether the CPU multiplies without carry; zlib is faster where it does not.");
  m.def("crc32",
        [](const Bytes& data, uint32_t value) {
          ReleaseGil free;
          return crc32(data.data(), data.size(), value);
        },
        "data"_a, "value"_a = 0, "zlib.crc32.");
  m.def("crc32s", &crc32s, "payloads"_a, "zlib.crc32 of each.");
  m.def("keep_freed_memory", &keep_freed_memory,
        "For the rest of this process, keep up to 64 MiB of freed memory for reuse, and large pieces, too. Without glibc nothing happens.");
}

}  // namespace dp4tl
