#include "core/jpeg/tables.h"

#include <algorithm>
#include <cstring>

namespace dp4tl {
namespace {

constexpr size_t kSlots = 16;

// The entries of one code: all that can follow it in the bits looked up.
void fill(int symbol, bool ac, int code_bits, int rest_bits, HuffmanEntry* to) {
  const int run = ac ? symbol >> 4 : 0, size = ac ? symbol & 15 : symbol;
  HuffmanEntry entry{};
  entry.run = static_cast<uint8_t>(ac && size == 0 && run != 15 ? kEndOfBlock : run);
  if (size == 0 || size > rest_bits) {
    entry.value = static_cast<int16_t>(size);
    entry.bits = static_cast<uint8_t>(size == 0 ? code_bits : kPartial | code_bits);
    std::fill(to, to + (1 << rest_bits), entry);
    return;
  }
  entry.bits = static_cast<uint8_t>(code_bits + size);
  const int same = 1 << (rest_bits - size);  // neighbours differ only behind the value's bits
  for (int raw = 0; raw < 1 << size; ++raw, to += same) {
    entry.value = static_cast<int16_t>(raw >> (size - 1) ? raw : raw - (1 << size) + 1);  // JPEG's EXTEND
    std::fill(to, to + same, entry);
  }
}

// False if the counts over-fill the code space, or a DC symbol is invalid. code_bits: of each entry, 0 where the code is longer.
bool build(const HuffmanSpec& spec, bool ac, HuffmanTable& table, uint8_t code_bits[1 << kAcBits]) {
  const uint8_t *counts = spec.bytes, *symbols = spec.bytes + 16;
  const int bits = ac ? kAcBits : kDcBits;
  std::memset(table.entries, 0, sizeof table.entries);
  std::memset(table.symbols, 0, sizeof table.symbols);
  std::memset(code_bits, 0, size_t{1} << bits);
  std::memcpy(table.symbols, symbols, static_cast<size_t>(spec.symbols));
  int code = 0, at = 0;
  for (int length = 1; length <= 16; ++length, code <<= 1) {
    table.offset[length] = at - code;
    for (int i = 0; i < counts[length - 1]; ++i, ++code, ++at) {
      if (code >= 1 << length || (!ac && symbols[at] > 11)) return false;
      if (length > bits) continue;
      const int rest_bits = bits - length;
      fill(symbols[at], ac, length, rest_bits, &table.entries[code << rest_bits]);
      std::memset(code_bits + (code << rest_bits), length, size_t{1} << rest_bits);
    }
    table.limit[length] = static_cast<uint32_t>(code) << (16 - length);
  }
  return true;
}

PairEntry pair_of(const HuffmanEntry& first, const HuffmanEntry& second) {
  const bool complete = first.bits != 0 && !(first.bits & kPartial);
  if (!complete || first.run == kEndOfBlock) return {0, 0, kNone, kEndOfBlock, 0, 0};
  const int after = first.run + 1;
  if (second.bits == 0 || second.bits & kPartial || first.bits + second.bits > kAcBits) {
    return {first.value, 0, first.run, kEndOfBlock, static_cast<uint8_t>(after), first.bits};
  }
  const int o2 = second.run == kEndOfBlock ? kEndOfBlock : after + second.run;
  return {first.value, second.value, first.run, static_cast<uint8_t>(o2), static_cast<uint8_t>(after + second.run + 1),
          static_cast<uint8_t>(first.bits + second.bits)};
}

void build_pairs(HuffmanTable& table) {
  for (int i = 0; i < 1 << kAcBits; ++i) {
    const HuffmanEntry& first = table.entries[i];
    const int rest = i << (first.bits & 15) & ((1 << kAcBits) - 1);
    table.pairs[i] = pair_of(first, table.entries[rest]);
  }
}

// As many symbols as have their codes among the bits; the value bits of the last may lie behind them.
void build_skip(HuffmanTable& table, const uint8_t code_bits[1 << kAcBits]) {
  for (int i = 0; i < 1 << kSkipBits; ++i) {
    int bits = 0, advance = 0, ends = 0;
    while (!ends && bits < kSkipBits) {
      const int window = (i << bits & ((1 << kSkipBits) - 1)) >> (kSkipBits - kAcBits);
      const HuffmanEntry e = table.entries[window];
      if (code_bits[window] == 0 || bits + code_bits[window] > kSkipBits) break;
      bits += e.bits & kPartial ? code_bits[window] + e.value : e.bits;
      if (e.run == kEndOfBlock) {
        ends = kEnds;
      } else {
        advance += e.run + 1;
      }
    }
    table.skip[i] = {static_cast<uint8_t>(advance), static_cast<uint8_t>(bits ? bits | ends : 0)};
  }
}

}  // namespace

const HuffmanTable* HuffmanCache::get(const HuffmanSpec& spec, Kind kind) {
  const size_t n = 16 + static_cast<size_t>(spec.symbols);
  const auto matches = [&](const Slot& s) {
    // A table with skip entries serves those who need none.
    return (s.kind == kind || (kind == Kind::kAc && s.kind == Kind::kAcWithSkip)) && s.key.size() == n &&
           std::memcmp(s.key.data(), spec.bytes, n) == 0;
  };
  auto slot = std::find_if(slots_.begin(), slots_.end(), matches);
  if (slot == slots_.end()) {
    if (slots_.size() < kSlots) {
      slots_.emplace_back().table = std::make_unique<HuffmanTable>();
      slot = slots_.end() - 1;
    } else {
      slot = std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) { return a.used < b.used; });
    }
    slot->key.clear();  // matches nothing, should building fail
    uint8_t code_bits[1 << kAcBits];
    if (!build(spec, kind != Kind::kDc, *slot->table, code_bits)) return nullptr;
    if (kind != Kind::kDc) build_pairs(*slot->table);
    slot->table->has_skip = kind == Kind::kAcWithSkip;
    if (slot->table->has_skip) build_skip(*slot->table, code_bits);
    slot->key.assign(spec.bytes, spec.bytes + n);
    slot->kind = kind;
  }
  slot->used = ++clock_;
  return slot->table.get();
}

}  // namespace dp4tl
