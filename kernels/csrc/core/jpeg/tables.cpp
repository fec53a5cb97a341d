#include "core/jpeg/tables.h"

#include <algorithm>
#include <cstring>

namespace dp4tl {
namespace {

constexpr size_t kSlots = 16;

// The entries of one code: all that can follow it in the bits looked up.
void fill(int symbol, bool ac, int code_bits, SymbolEntry* to) {
  const int rest_bits = kCodeBits - code_bits, run = ac ? symbol >> 4 : 0, size = ac ? symbol & 15 : symbol;
  SymbolEntry entry{};
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

// The codes at the beginning of all windows.
struct Codes {
  uint8_t length[1 << kCodeBits] = {}, size[1 << kCodeBits];  // of the code, 0 where it is longer; of its value
};

// What a window begins with: up to two symbols and an end of block whose codes lie in it; the value of the last may reach beyond.
CodeEntry entry_of(const Codes& codes, const SymbolEntry* symbol, int window, bool ac) {
  uint64_t bits = 0, places[2] = {}, value = 0, size = 0, value_end = 1, next = 0;
  int symbols = 0;
  bool ends = false;
  while (!ends && bits < kCodeBits) {
    const int rest = window << bits & ((1 << kCodeBits) - 1);
    const uint64_t length = codes.length[rest], end = bits + length + codes.size[rest];
    if (length == 0 || bits + length > kCodeBits) break;
    ends = !ac || symbol[rest].run == kEndOfBlock;
    if (!ac || !ends) {
      if (symbols == 2 || end > kCodeMost) break;
      next += symbol[rest].run;
      ++symbols;
      places[0] = symbols == 1 ? next : places[1];
      places[1] = next++;
      size = codes.size[rest], value_end = end;
      if (symbols == 1) value = static_cast<uint16_t>(symbol[rest].value);  // counts if it is complete
    }
    bits = end;
  }
  if (bits == 0) return kCodeUnsettled;
  const uint64_t mask = (uint64_t{1} << size) - 1;
  return bits | (ends ? kCodeEnds : 0) | (64 - value_end) << 10 | places[0] << 16 | places[1] << 24 | value << 32 | mask << 48;
}

// False if the counts over-fill the code space, or a DC symbol is invalid.
bool build(const HuffmanSpec& spec, bool ac, HuffmanTable& table) {
  const uint8_t *counts = spec.bytes, *symbols = spec.bytes + 16;
  std::memset(table.symbol, 0, sizeof table.symbol);
  std::memset(table.symbols, 0, sizeof table.symbols);
  std::memcpy(table.symbols, symbols, static_cast<size_t>(spec.symbols));
  Codes codes;
  int code = 0, at = 0;
  for (int length = 1; length <= 16; ++length, code <<= 1) {
    table.offset[length] = at - code;
    for (int i = 0; i < counts[length - 1]; ++i, ++code, ++at) {
      if (code >= 1 << length || (!ac && symbols[at] > 11)) return false;
      if (length > kCodeBits) continue;
      const int first = code << (kCodeBits - length), count = 1 << (kCodeBits - length);
      fill(symbols[at], ac, length, &table.symbol[first]);
      std::memset(codes.length + first, length, static_cast<size_t>(count));
      std::memset(codes.size + first, ac ? symbols[at] & 15 : symbols[at], static_cast<size_t>(count));
    }
    table.limit[length] = static_cast<uint32_t>(code) << (16 - length);
  }
  for (int i = 0; i < 1 << kCodeBits; ++i) table.entries[i] = entry_of(codes, table.symbol, i, ac);
  return true;
}

}  // namespace

std::shared_ptr<const HuffmanTable> HuffmanCache::get(const HuffmanSpec& spec, bool ac) {
  std::vector<uint8_t> key(spec.bytes, spec.bytes + 16 + spec.symbols);
  key.push_back(ac);
  auto slot = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.key == key; });
  if (slot == slots_.end()) {
    if (slots_.size() < kSlots) slots_.emplace_back();
    slot = std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) { return a.used < b.used; });
    slot->key.clear();  // matches nothing, should building fail
    if (slot->table.use_count() != 1) slot->table = std::make_shared<HuffmanTable>();  // new, or in use
    if (!build(spec, ac, *slot->table)) return nullptr;
    slot->key = std::move(key);
  }
  slot->used = ++clock_;
  return slot->table;
}

}  // namespace dp4tl
