#include "core/jpeg/walk.h"

#include <algorithm>
#include <cstring>

#include "core/jpeg/unstuff.h"

namespace dp4tl {
namespace {

constexpr size_t kSlots = 12;
// Zeros behind the data. A walk notices the end of the data at the end of a segment, and a coefficient takes at most 31 bits.
constexpr size_t kZeros = size_t{kWalkBlocks} * 64 * 31 / 8 + 16;

// -- one symbol at a time ---------------------------------------------------------------------------------------------

void refill(WalkState& s) {
  uint64_t word;
  std::memcpy(&word, s.p, 8);
  s.buffer |= __builtin_bswap64(word) >> (s.left & 63);
  s.p += (s.left ^ 63) >> 3 & 7;
  s.left |= 56;
}

void consume(WalkState& s, int bits) {
  s.buffer <<= bits;
  s.left -= static_cast<uint32_t>(bits);
}

// The length of the code at the beginning of `buffer`, 17 if there is no such code.
int code_length(const WalkTable& table, uint64_t buffer) {
  const auto code = static_cast<uint32_t>(buffer >> 48);
  int n = 1;
  for (int i = 1; i <= 16; ++i) n += code >= table.limit[i];
  return n;
}

int symbol_of(const WalkTable& table, uint64_t buffer, int length) {
  return table.symbols[(static_cast<int32_t>(buffer >> (64 - length)) + table.offset[length]) & 255];
}

// The next symbol, its code and value consumed; or -1.
int read_symbol(WalkState& s, const WalkTable& table) {
  refill(s);
  const int length = code_length(table, s.buffer);
  if (length > 16) return -1;
  const int symbol = symbol_of(table, s.buffer, length);
  consume(s, length + (symbol & 15));
  return symbol;
}

// The DC difference whose code and value lie in `buffer`. Without a branch: its sign cannot be predicted.
int difference(const WalkTable& table, uint64_t buffer) {
  const int entry = table.next.several[buffer >> (64 - kWalkBits)];
  int bits = entry & 63, size = entry >> 6 & 63;
  if (__builtin_expect(bits == 0, 0)) {
    const int length = code_length(table, buffer);
    size = symbol_of(table, buffer, length);
    bits = length + size;
  }
  buffer <<= bits - size;
  const int raw = static_cast<int>(buffer >> 1 >> (63 - size));
  const int negative = static_cast<int>(~static_cast<int64_t>(buffer) >> 63);
  return raw + (negative & (1 - (1 << size)));  // JPEG's EXTEND
}

}  // namespace

// -- tables -----------------------------------------------------------------------------------------------------------

namespace {

struct Code {
  int code, length, bits;  // bits: with the value's
  uint16_t entry;
};

// Entries for every content of a window of `bits` bits: as many symbols as have their codes in it, 0 if none has. `shorter[n]`: those of
// windows of n bits.
void fill_window(const std::vector<Code>& codes, int bits, const uint16_t* const* shorter, uint16_t* to) {
  std::fill(to, to + (1 << bits), uint16_t{0});
  for (const Code& c : codes) {
    if (c.length > bits) break;  // the others are longer still
    uint16_t *at = to + (c.code << (bits - c.length)), *end = at + (1 << (bits - c.length));
    const int left = bits - c.bits;
    if (left <= 0 || c.entry & kWalkEnds) {
      std::fill(at, end, c.entry);
      continue;
    }
    while (at < end) {  // for each value
      const uint16_t* rest = shorter[left];
      for (int i = 0; i < 1 << left; ++i) {
        const auto both = static_cast<uint16_t>(c.entry + rest[i]);
        *at++ = (both & 63) > kWalkMost || (both >> 6 & 127) > 62 ? c.entry : both;
      }
    }
  }
}

}  // namespace

bool WalkTable::build(const HuffmanSpec& spec, bool ac) {
  const uint8_t* counts = spec.bytes;
  std::memset(symbols, 0, sizeof symbols);
  std::memcpy(symbols, spec.bytes + 16, static_cast<size_t>(spec.symbols));
  std::fill(std::begin(next.single), std::end(next.single), uint16_t{0});
  std::vector<Code> codes;
  codes.reserve(static_cast<size_t>(spec.symbols));
  int code = 0, at = 0;
  for (int length = 1; length <= 16; ++length, code <<= 1) {
    offset[length] = at - code;
    for (int i = 0; i < counts[length - 1]; ++i, ++code, ++at) {
      if (code >= 1 << length || (!ac && symbols[at] > 11)) return false;
      const int size = symbols[at] & 15, run = symbols[at] >> 4, bits = length + size;
      if (length > kWalkBits || bits > kWalkMost) continue;
      const uint32_t what = !ac ? kWalkEnds | static_cast<uint32_t>(size) << 6 : size == 0 && run != 15 ? kWalkEnds : static_cast<uint32_t>(run + 1) << 6;
      codes.push_back({code, length, bits, static_cast<uint16_t>(static_cast<uint32_t>(bits) | what)});
      if (what & kWalkEnds) continue;
      std::fill(next.single + (code << (kWalkBits - length)), next.single + ((code + 1) << (kWalkBits - length)), codes.back().entry);
    }
    limit[length] = static_cast<uint32_t>(code) << (16 - length);
  }
  uint16_t windows[1 << kWalkBits];
  const uint16_t* shorter[kWalkBits] = {};
  if (ac) {
    for (int bits = 1; bits < kWalkBits; ++bits) {
      fill_window(codes, bits, shorter, windows + (1 << bits));
      shorter[bits] = windows + (1 << bits);
    }
  }
  fill_window(codes, kWalkBits, shorter, next.several);
  for (uint16_t& entry : next.several) entry = entry ? entry : static_cast<uint16_t>(kWalkUnsettled);
  return true;
}

std::shared_ptr<const WalkTable> ScanWalker::table_of(const HuffmanSpec& spec, bool ac) {
  std::vector<uint8_t> key(spec.bytes, spec.bytes + 16 + spec.symbols);
  key.push_back(ac);
  auto slot = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.key == key; });
  if (slot == slots_.end()) {
    if (slots_.size() < kSlots) slots_.emplace_back();
    slot = std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) { return a.used < b.used; });
    slot->key.clear();  // matches nothing, should building fail
    if (slot->table.use_count() != 1) slot->table = std::make_shared<WalkTable>();  // new, or the other lane's
    if (!slot->table->build(spec, ac)) return nullptr;
    slot->key = std::move(key);
  }
  slot->used = ++clock_;
  return slot->table;
}

// -- lanes ------------------------------------------------------------------------------------------------------------

ScanWalker::ScanWalker(const Kernels& kernels) : kernels_(kernels), idle_(std::make_unique<WalkTables>()), stop_(std::make_unique<WalkTables>()) {
  std::fill(std::begin(stop_->several), std::end(stop_->several), static_cast<uint16_t>(kWalkUnsettled));
}

void ScanWalker::run(std::vector<ScanWalk>& scans) {
  scans_ = &scans;
  next_ = 0;
  active_ = kWalkLanes;
  for (int i = 0; i < kWalkLanes; ++i) begin_next(i);
  while (active_ > 0) {
    const int lane = kernels_.walk_scans(states_);
    if (!settle(lane)) begin_next(lane);
  }
}

// Give the lane the next scan that can be begun; or nothing to do, for ever.
void ScanWalker::begin_next(int lane) {
  while (next_ < scans_->size()) {
    if (begin(lane, (*scans_)[next_++])) return;
  }
  static constexpr uint8_t kNothing[16] = {};
  WalkState& s = states_[lane];
  s.p = kNothing, s.buffer = 0, s.left = kWalkLeft, s.table = idle_.get(), s.step = 0;
  --active_;
}

bool ScanWalker::begin(int lane, ScanWalk& scan) {
  Lane& l = lanes_[lane];
  WalkState& s = states_[lane];
  l.scan = &scan;
  scan.good = false;
  l.blocks_per_mcu = 0;
  for (int c = 0; c < scan.components; ++c) {
    l.dc[c] = table_of(scan.component[c].dc, false), l.ac[c] = table_of(scan.component[c].ac, true);
    if (!l.dc[c] || !l.ac[c]) return false;
    l.blocks_per_mcu += scan.component[c].blocks;
  }
  l.mcus_per_segment = std::min(scan.interval, kWalkBlocks / l.blocks_per_mcu);
  int block = 0;
  for (int mcu = 0; mcu < l.mcus_per_segment; ++mcu) {
    for (int c = 0; c < scan.components; ++c) {
      for (int i = 0; i < scan.component[c].blocks; ++i, ++block) {
        l.component[block] = c;
        s.tables[2 * block] = &l.dc[c]->next, s.tables[2 * block + 1] = &l.ac[c]->next;
      }
    }
  }
  l.last_step = 2 * static_cast<uint64_t>(block);
  s.tables[l.last_step] = stop_.get();

  const auto bytes = static_cast<size_t>(scan.end - scan.data);
  if (l.bytes.size() < bytes + kZeros) l.bytes.resize(bytes + kZeros);
  l.stuffed.clear();
  uint8_t* const begin = l.bytes.data();
  uint8_t* to = begin;
  unstuff(scan.data, scan.end, scan.end, to, [&](const uint8_t* place) { l.stuffed.push_back(static_cast<uint32_t>(place - begin)); });
  l.size = static_cast<size_t>(to - begin);
  std::memset(l.bytes.data() + l.size, 0, kZeros);
  s.p = l.bytes.data(), s.buffer = 0, s.left = 0;
  l.mcu = 0;
  std::fill(l.dc_sum, l.dc_sum + 3, 0u);
  scan.entries.clear();
  scan.entries.reserve(static_cast<size_t>((scan.mcus - 1) / scan.interval) + 1);
  scan.entries.push_back({0, static_cast<uint32_t>(bytes), {}, 0});
  begin_segment(lane);
  return true;
}

// A segment ends at the latest where the next entry begins.
void ScanWalker::begin_segment(int lane) {
  Lane& l = lanes_[lane];
  WalkState& s = states_[lane];
  const int interval = l.scan->interval;
  const int mcus = std::min({l.mcus_per_segment, interval - l.mcu % interval, l.scan->mcus - l.mcu});
  l.segment_end = l.mcu + mcus;
  s.step = l.first_step = l.last_step - 2 * static_cast<uint64_t>(mcus * l.blocks_per_mcu);
  s.table = s.tables[s.step];
  s.left = (s.left & 63) | kWalkLeft;
}

// What no look-up settles: a symbol, or the end of a segment. False when the lane is done with its scan.
bool ScanWalker::settle(int lane) {
  WalkState& s = states_[lane];
  if (s.step == lanes_[lane].last_step) return end_segment(lane);
  const int c = lanes_[lane].component[s.step / 2];
  if (s.step % 2 == 0) {
    refill(s);
    s.buffers[s.step] = s.buffer;
    if (read_symbol(s, *lanes_[lane].dc[c]) < 0) return false;
    s.table = s.tables[++s.step];
    return true;
  }
  const int symbol = read_symbol(s, *lanes_[lane].ac[c]);
  if (symbol < 0) return false;
  const int covered = (symbol >> 4) + 1;
  const int left = static_cast<int>(s.left >> 6) - covered;  // one fewer than may still come
  const bool ends = (symbol & 15) == 0 && covered != 16;
  if (!ends && left < -1) return false;
  s.left = (s.left & 63) | (ends || left < 0 ? kWalkLeft : static_cast<uint32_t>(left) << 6);
  if (ends || left < 0) s.table = s.tables[++s.step];
  return true;
}

bool ScanWalker::end_segment(int lane) {
  Lane& l = lanes_[lane];
  WalkState& s = states_[lane];
  const uint64_t bit = static_cast<uint64_t>(s.p - l.bytes.data()) * 8 - (s.left & 63);
  if (bit > uint64_t{l.size} * 8) return false;  // more bits were consumed than there are
  ScanWalk& scan = *l.scan;
  l.mcu = l.segment_end;
  if (l.mcu == scan.mcus) {
    scan.good = uint64_t{l.size} * 8 - bit < 8;
    return finish(lane);
  }
  if (scan.interval < scan.mcus) {  // else no entry needs the sums
    for (uint64_t step = l.first_step; step < l.last_step; step += 2) {
      const int c = l.component[step / 2];
      l.dc_sum[c] += static_cast<uint32_t>(difference(*l.dc[c], s.buffers[step]));
    }
  }
  if (l.mcu % scan.interval == 0) {
    ScanEntry entry{static_cast<uint32_t>(bit >> 3), scan.entries[0].stop, {}, static_cast<uint8_t>(bit & 7)};
    for (int c = 0; c < 3; ++c) entry.dc[c] = static_cast<int16_t>(l.dc_sum[c]);  // wraps like the 16 bits it is stored in
    scan.entries.push_back(entry);
  }
  begin_segment(lane);
  return true;
}

// Entries count the bytes as they are stored.
bool ScanWalker::finish(int lane) {
  const std::vector<uint32_t>& stuffed = lanes_[lane].stuffed;
  size_t before = 0;
  for (ScanEntry& entry : lanes_[lane].scan->entries) {
    while (before < stuffed.size() && stuffed[before] <= entry.start) ++before;
    entry.start += static_cast<uint32_t>(before);
  }
  return false;
}

}  // namespace dp4tl
