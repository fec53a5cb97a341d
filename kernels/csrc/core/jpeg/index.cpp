#include "core/jpeg/index.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace dp4tl {
namespace {

constexpr size_t kFixed = 18, kMaxPayload = 65533;
constexpr uint8_t kVersion = 1;

uint32_t be16(const uint8_t* p) { return static_cast<uint32_t>(p[0] << 8 | p[1]); }
uint32_t be32(const uint8_t* p) { return be16(p) << 16 | be16(p + 2); }

char* put16(char* to, uint32_t x) {
  to[0] = static_cast<char>(x >> 8), to[1] = static_cast<char>(x);
  return to + 2;
}
char* put32(char* to, uint32_t x) { return put16(put16(to, x >> 16), x); }

// FNV-1a of the first and the last 32 bytes.
uint32_t check_of(const uint8_t* data, size_t size) {
  uint32_t hash = 2166136261u;
  const auto add = [&](const uint8_t* p, size_t n) {
    for (size_t i = 0; i < n; ++i) hash = (hash ^ p[i]) * 16777619u;
  };
  const size_t n = std::min<size_t>(size, 32);
  add(data, n);
  add(data + size - n, n);
  return hash;
}

int entries_in(const JpegHeader& h, int interval) { return (h.mcus_per_row() * h.mcu_rows() - 1) / interval; }

size_t entry_bytes(const JpegHeader& h) { return 2 + 2 * static_cast<size_t>(h.components); }

}  // namespace

int read_index(const JpegHeader& h, const uint8_t* data, size_t size, int last, std::vector<ScanEntry>& entries) {
  if (h.index_bytes < kFixed) return 0;
  const uint8_t* p = h.index;
  const auto interval = static_cast<int>(be16(p + 8));
  const size_t scan_bytes = size - h.scan;
  if (p[6] != kVersion || p[7] != h.components || interval == 0 || be32(p + 10) != scan_bytes ||
      be32(p + 14) != check_of(data + h.scan, scan_bytes)) {
    return 0;
  }
  if (h.index_bytes != kFixed + static_cast<size_t>(entries_in(h, interval)) * entry_bytes(h)) return 0;
  p += kFixed;
  const auto stop = static_cast<uint32_t>(scan_bytes);
  const int needed = last / interval;
  entries.resize(static_cast<size_t>(needed) + 1);
  entries[0] = {0, stop, {}, 0};
  uint64_t bits = 0;
  for (int i = 1; i <= needed; ++i) {
    bits += be16(p);
    p += 2;
    ScanEntry& entry = entries[static_cast<size_t>(i)];
    entry = {static_cast<uint32_t>(bits >> 3), stop, {}, static_cast<uint8_t>(bits & 7)};
    if (entry.start >= stop) return 0;
    for (int c = 0; c < h.components; ++c, p += 2) entry.dc[c] = static_cast<int16_t>(be16(p));
  }
  return interval;
}

namespace {

// The segment, or empty if an entry is too far from the one before.
std::string segment_of(const JpegHeader& h, const uint8_t* data, size_t size, int interval, const std::vector<ScanEntry>& entries) {
  const size_t payload = kFixed + (entries.size() - 1) * entry_bytes(h);
  std::string out(4 + payload, '\0');
  char* to = put16(&out[0], 0xFFEF);
  to = put16(to, static_cast<uint32_t>(payload + 2));
  to = std::copy_n("DP4TL\0", 6, to);
  *to++ = static_cast<char>(kVersion), *to++ = static_cast<char>(h.components);
  to = put16(to, static_cast<uint32_t>(interval));
  to = put32(to, static_cast<uint32_t>(size - h.scan));
  to = put32(to, check_of(data + h.scan, size - h.scan));
  uint64_t before = 0;
  for (size_t i = 1; i < entries.size(); ++i) {
    const uint64_t bits = uint64_t{entries[i].start} * 8 + entries[i].skip_bits;
    if (bits - before > 65535) return {};
    to = put16(to, static_cast<uint32_t>(bits - before));
    for (int c = 0; c < h.components; ++c) to = put16(to, static_cast<uint16_t>(entries[i].dc[c]));
    before = bits;
  }
  return out;
}

// The MCUs from one entry to the next, or 0 for no index.
int interval_of(const JpegHeader& h, int pixels) {
  if (pixels <= 0 || h.index) return 0;
  int interval = std::max(1, pixels / h.mcu_width());
  while (kFixed + static_cast<size_t>(entries_in(h, interval)) * entry_bytes(h) > kMaxPayload) interval *= 2;
  return interval > 65535 ? 0 : interval;
}

}  // namespace

void JpegIndexer::run(std::vector<IndexTask>& tasks) {
  struct Walked {
    IndexTask* task;
    JpegHeader header;
    int interval;
  };
  std::vector<Walked> walked;
  std::vector<ScanWalk> walks;
  for (IndexTask& task : tasks) {
    const auto [data, size] = std::pair{task.data, task.size};
    JpegHeader h;
    task.result = IndexTask::Result::kUnusual;
    if (size > UINT32_MAX || size < 2 || !parse_jpeg(data, size, h) || h.restart_interval > 0) continue;
    task.result = IndexTask::Result::kDamaged;
    if (data[size - 2] != 0xFF || data[size - 1] != 0xD9) continue;
    const int interval = interval_of(h, task.pixels), mcus = h.mcus_per_row() * h.mcu_rows();
    ScanWalk walk{data + h.scan, data + size - 2, mcus, interval ? interval : mcus, h.components, {}, {}, false};
    for (int i = 0; i < h.components; ++i) {
      const auto& c = h.component[i];
      walk.component[i] = {h.dc[c.dc], h.ac[c.ac], c.h * c.v};
    }
    walked.push_back({&task, h, interval});
    walks.push_back(std::move(walk));
  }
  walker_.run(walks);
  for (size_t i = 0; i < walks.size(); ++i) {
    auto& [task, h, interval] = walked[i];
    if (!walks[i].good) continue;
    task->result = IndexTask::Result::kPlain;
    if (!interval) continue;
    task->segment = segment_of(h, task->data, task->size, interval, walks[i].entries);
    task->at = h.scan - (8 + 2 * static_cast<size_t>(h.components));  // where the scan's own segment begins
    if (!task->segment.empty()) task->result = IndexTask::Result::kIndexed;
  }
}

void IndexTask::write(uint8_t* to) const {
  std::memcpy(to, data, at);
  std::memcpy(to + at, segment.data(), segment.size());
  std::memcpy(to + at + segment.size(), data + at, size - at);
}

}  // namespace dp4tl
