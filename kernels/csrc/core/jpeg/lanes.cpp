#include "core/jpeg/lanes.h"

#include <algorithm>
#include <cstring>

#include "core/jpeg/unstuff.h"

namespace dp4tl {
namespace {

uint64_t bit_of(const LaneState& s) { return s.bit + static_cast<uint64_t>(__builtin_ctzll(s.buffer)); }

// Whether it has stopped because it needs more bytes.
bool is_short(const LaneState& s) { return bit_of(s) > s.most; }

}  // namespace

ScanDecoder::ScanDecoder(const Kernels& kernels)
    : kernels_(kernels), blocks_(std::make_unique<Blocks[]>(kLanes)), stop_(std::make_unique<HuffmanTable>()) {
  std::fill(std::begin(stop_->entries), std::end(stop_->entries), kCodeUnsettled);
}

void ScanDecoder::begin(int lane, const Scan& scan) {
  Lane& l = lanes_[lane];
  LaneState& s = states_[lane];
  l.scan = &scan;
  l.good = false;
  l.blocks_per_mcu = 0;
  for (int i = 0; i < scan.components; ++i) l.blocks_per_mcu += scan.component[i].h * scan.component[i].v;
  l.mcus_per_segment = kLaneBlocks / l.blocks_per_mcu;
  LaneStep* step = s.steps;
  int16_t* block = blocks_[lane].c;
  for (int mcu = 0; mcu < l.mcus_per_segment; ++mcu) {
    for (int i = 0; i < scan.components; ++i) {
      const ScanComponent& c = scan.component[i];
      for (int b = 0; b < c.h * c.v; ++b, block += 64) {
        *step++ = {c.dc, block, 0};
        *step++ = {c.ac, block + 1, 0};
      }
    }
  }
  *step = {stop_.get(), blocks_[lane].c, 0};
  l.row = scan.row0, l.next = -1;
  s.bytes = l.bytes, s.bit = 0, s.buffer = 1;
  l.from = nullptr, l.size = 0;
  l.running = begin_segment(lane);
}

int ScanDecoder::advance() {
  for (;;) {
    int running = 0, passing = 0;  // a bit for each lane
    for (int i = kLanes - 1; i >= 0; --i) {
      if (lanes_[i].scan && !lanes_[i].running) {
        lanes_[i].scan = nullptr;
        return i;
      }
      if (lanes_[i].running) running |= 1 << i;
      if (lanes_[i].running && lanes_[i].segment.passed) passing |= 1 << i;
    }
    static_assert(kLanes == 2, "all of them, or one");
    const int first = running == 3 ? 0 : running >> 1;
    const int lane = running == 3 ? kernels_.decode_both[passing](states_) : first + kernels_.decode_one[passing != 0](states_ + first);
    const LaneState& s = states_[lane];
    const bool at_end = s.table == stop_.get();
    if (!at_end && is_short(s) && more_bytes(lane)) continue;
    lanes_[lane].running = at_end && end_segment(lane) && begin_segment(lane);
    if (!lanes_[lane].running) std::memset(blocks_[lane].c, 0, sizeof blocks_[lane].c);  // what damage has left
  }
}

// Continue at the first bit of an entry.
void ScanDecoder::enter(int lane, const ScanEntry& entry) {
  Lane& l = lanes_[lane];
  l.from = l.scan->data + entry.start, l.end = l.scan->data + entry.stop;
  std::copy(entry.dc, entry.dc + 3, l.predictors);
  l.chunk = kFirst, l.size = 0;
  LaneState& s = states_[lane];
  s.bit = 0, s.buffer = 1;
  more_bytes(lane);
  s.bit = entry.skip_bits;
}

// Unstuff bytes behind those that are left, and zeros behind the last. False if there are no more.
bool ScanDecoder::more_bytes(int lane) {
  Lane& l = lanes_[lane];
  LaneState& s = states_[lane];
  if (!l.from) return false;
  s.bit = bit_of(s);
  s.buffer = 1;
  const auto done = std::min(static_cast<size_t>(s.bit / 8), l.size);
  std::memmove(l.bytes, l.bytes + done, l.size - done);
  s.bit -= 8 * done;
  uint8_t* to = l.bytes + l.size - done;
  const uint8_t* const stop = l.end - l.from > static_cast<ptrdiff_t>(l.chunk) ? l.from + l.chunk : l.end;
  l.from = unstuff(l.from, stop, l.end, to, [](const uint8_t*) {});
  l.size = static_cast<size_t>(to - l.bytes);
  if (!l.from) std::memset(to, 0, 16), to += 16;
  s.most = 8 * static_cast<uint64_t>(to - l.bytes - 8);
  l.chunk = std::min(2 * l.chunk, kMost);
  return true;
}

// Whether more bits were consumed than there are.
bool ScanDecoder::overrun(int lane) const {
  const LaneState& s = states_[lane];
  return !lanes_[lane].from && bit_of(s) > 8 * uint64_t{lanes_[lane].size};
}

// MCUs that follow each other and are all wanted, or are all passed over. False if there are none, or the data are damaged.
bool ScanDecoder::begin_segment(int lane) {
  Lane& l = lanes_[lane];
  LaneState& s = states_[lane];
  const Scan& scan = *l.scan;
  for (; l.row < scan.row1; ++l.row) {
    const int first = l.row * scan.mcus_per_row + scan.column0, stop = l.row * scan.mcus_per_row + scan.column1;
    const int anchor = first / scan.interval * scan.interval;
    const bool jump = l.next < anchor;
    if (jump) l.next = anchor;
    if (l.next >= stop) continue;
    if ((jump || scan.restarts) && l.next % scan.interval == 0) {
      const int entry = l.next / scan.interval;
      if (entry >= scan.num_entries || overrun(lane)) return false;
      enter(lane, scan.entries[entry]);
    }
    const bool wanted = l.next >= first;
    int mcus = std::min(l.mcus_per_segment, (wanted ? stop : first) - l.next);
    if (scan.restarts) mcus = std::min(mcus, scan.interval - l.next % scan.interval);
    const int before = (l.mcus_per_segment - mcus) * l.blocks_per_mcu;  // blocks without an MCU
    s.step = s.steps + 2 * before;
    l.segment = {&scan, blocks_[lane].c + 64 * before, mcus, mcus * l.blocks_per_mcu, l.row - scan.row0, l.next - first,
                 wanted ? nullptr : s.step, l.predictors};
    s.table = s.step->table, s.at = s.step->at;
    return true;
  }
  l.good = !overrun(lane);
  return false;
}

// False if the data are damaged.
bool ScanDecoder::end_segment(int lane) {
  Lane& l = lanes_[lane];
  if (overrun(lane)) return false;
  kernels_.finish_segment(l.segment);
  l.next += l.segment.mcus;
  return true;
}

}  // namespace dp4tl
