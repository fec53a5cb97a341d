#include "core/jpeg/index.h"

#include <algorithm>
#include <cstring>

namespace dp4tl {
namespace {

constexpr size_t kFixed = 18, kMaxPayload = 65533;
constexpr uint8_t kVersion = 1;

uint32_t be16(const uint8_t* p) { return static_cast<uint32_t>(p[0] << 8 | p[1]); }
uint32_t be32(const uint8_t* p) { return be16(p) << 16 | be16(p + 2); }

void put16(std::string& out, uint32_t x) { out += {static_cast<char>(x >> 8), static_cast<char>(x)}; }
void put32(std::string& out, uint32_t x) { put16(out, x >> 16), put16(out, x); }

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

bool JpegIndexer::walk(const JpegHeader& h, const uint8_t* data, size_t size, int interval) {
  Scan scan{};
  scan.data = data + h.scan;
  scan.end = data + size - 2;
  scan.interval = interval;
  scan.components = h.components;
  for (int i = 0; i < h.components; ++i) {
    const auto& c = h.component[i];
    scan.component[i] = {tables_.get(h.dc[c.dc], HuffmanCache::Kind::kDc), tables_.get(h.ac[c.ac], HuffmanCache::Kind::kAcWithSkip),
                         nullptr, c.h, c.v, 8, nullptr, 0};
    if (!scan.component[i].dc || !scan.component[i].ac) return false;
  }
  entries_.resize(static_cast<size_t>(entries_in(h, interval)) + 1);
  return kernels_.index_scan(scan, h.mcus_per_row() * h.mcu_rows(), entries_.data());
}

JpegIndexer::Result JpegIndexer::check(const uint8_t* data, size_t size) {
  JpegHeader h;
  if (size > UINT32_MAX || size < 2 || !parse_jpeg(data, size, h) || h.restart_interval > 0) return Result::kUnusual;
  if (data[size - 2] != 0xFF || data[size - 1] != 0xD9) return Result::kDamaged;
  return walk(h, data, size, h.mcus_per_row() * h.mcu_rows()) ? Result::kPlain : Result::kDamaged;
}

JpegIndexer::Result JpegIndexer::run(const uint8_t* data, size_t size, int pixels) {
  JpegHeader h;
  if (size > UINT32_MAX || size < 2 || !parse_jpeg(data, size, h)) return Result::kUnusual;
  if (data[size - 2] != 0xFF || data[size - 1] != 0xD9) return Result::kDamaged;
  int interval = std::max(1, pixels / h.mcu_width());
  while (kFixed + static_cast<size_t>(entries_in(h, interval)) * entry_bytes(h) > kMaxPayload) interval *= 2;
  if (h.restart_interval > 0 || h.index || interval > 65535) return Result::kPlain;

  if (!walk(h, data, size, interval)) return Result::kDamaged;
  const int n = entries_in(h, interval);

  at_ = h.scan - (8 + 2 * static_cast<size_t>(h.components));  // where the scan's own segment begins
  const size_t payload = kFixed + static_cast<size_t>(n) * entry_bytes(h);
  std::string& out = segment_;
  out = "\xFF\xEF";
  put16(out, static_cast<uint32_t>(payload + 2));
  out.append("DP4TL\0", 6);
  out += {static_cast<char>(kVersion), static_cast<char>(h.components)};
  put16(out, static_cast<uint32_t>(interval));
  put32(out, static_cast<uint32_t>(size - h.scan));
  put32(out, check_of(data + h.scan, size - h.scan));
  uint64_t before = 0;
  for (int i = 1; i <= n; ++i) {
    const ScanEntry& entry = entries_[static_cast<size_t>(i)];
    const uint64_t bits = uint64_t{entry.start} * 8 + entry.skip_bits;
    if (bits - before > 65535) return Result::kPlain;
    put16(out, static_cast<uint32_t>(bits - before));
    for (int c = 0; c < h.components; ++c) put16(out, static_cast<uint16_t>(entry.dc[c]));
    before = bits;
  }
  return Result::kIndexed;
}

void JpegIndexer::write(const uint8_t* data, size_t size, uint8_t* to) const {
  std::memcpy(to, data, at_);
  std::memcpy(to + at_, segment_.data(), segment_.size());
  std::memcpy(to + at_ + segment_.size(), data + at_, size - at_);
}

}  // namespace dp4tl
