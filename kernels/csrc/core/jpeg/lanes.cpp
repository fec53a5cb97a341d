#include "core/jpeg/lanes.h"

#include <algorithm>
#include <cstring>

namespace dp4tl {
namespace {

// Whether more bits were consumed than there are.
bool overrun(const Bits& bits) { return bits.missing > bits.count; }

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
        *step++ = {c.dc, block};
        *step++ = {c.ac, block + 1};
      }
    }
  }
  *step = {stop_.get(), blocks_[lane].c};
  l.row = scan.row0, l.next = -1;
  s.bits = {scan.data, scan.data, 0, 0, 0};
  l.running = begin_segment(lane);
}

int ScanDecoder::advance() {
  for (;;) {
    bool all = true;
    int first = -1;
    for (int i = kLanes - 1; i >= 0; --i) {
      if (lanes_[i].scan && !lanes_[i].running) {
        lanes_[i].scan = nullptr;
        return i;
      }
      all = all && lanes_[i].running;
      if (lanes_[i].running) first = i;
    }
    const int lane = all ? kernels_.decode_lanes[kLanes - 1](states_) : first + kernels_.decode_lanes[0](states_ + first);
    lanes_[lane].running = end_segment(lane) && begin_segment(lane);
  }
}

// Continue at the first bit of an entry.
void ScanDecoder::enter(int lane, const ScanEntry& entry) {
  Bits& bits = states_[lane].bits;
  bits = {lanes_[lane].scan->data + entry.start, lanes_[lane].scan->data + entry.stop, 0, 0, 0};
  std::copy(entry.dc, entry.dc + 3, lanes_[lane].predictors);
  if (entry.skip_bits == 0 || bits.p >= bits.end) return;
  const bool marker = *bits.p == 0xFF && (bits.end - bits.p < 2 || bits.p[1] != 0);
  bits.buffer = marker ? 0 : uint64_t{*bits.p} << (56 + entry.skip_bits);
  bits.count = 8 - entry.skip_bits;
  bits.missing = marker ? 8 : 0;
  bits.p = marker ? bits.end : bits.p + (*bits.p == 0xFF ? 2 : 1);
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
      if (entry >= scan.num_entries || overrun(s.bits)) return false;
      enter(lane, scan.entries[entry]);
    }
    const bool wanted = l.next >= first;
    int mcus = std::min(l.mcus_per_segment, (wanted ? stop : first) - l.next);
    if (scan.restarts) mcus = std::min(mcus, scan.interval - l.next % scan.interval);
    const int before = (l.mcus_per_segment - mcus) * l.blocks_per_mcu;  // blocks without an MCU
    l.segment = {&scan, blocks_[lane].c + 64 * before, mcus, l.row - scan.row0, l.next - first, wanted, l.predictors};
    s.step = s.steps + 2 * before;
    s.table = s.step->table, s.at = s.step->at;
    return true;
  }
  l.good = !overrun(s.bits);
  return false;
}

// False if the data are damaged.
bool ScanDecoder::end_segment(int lane) {
  Lane& l = lanes_[lane];
  const LaneState& s = states_[lane];
  if (s.table != stop_.get() || overrun(s.bits)) {
    std::memset(blocks_[lane].c, 0, sizeof blocks_[lane].c);
    return false;
  }
  kernels_.finish_segment(l.segment);
  l.next += l.segment.mcus;
  return true;
}

}  // namespace dp4tl
