#include "core/jpeg_recode.h"

#include <algorithm>
#include <cstring>

namespace dp4tl {
namespace {

constexpr int kLookBits = 10;

// Decodes canonical Huffman codes (T.81 annex C): short ones by a table, long ones by the first code of each length.
struct Decoder {
  uint16_t look[1 << kLookBits];  // length << 8 | symbol; 0: longer, or no code
  int32_t first[18], offset[17];  // of each length: its first code, left-aligned to 16 bits; its first symbol's place less that code
  uint8_t symbols[256];
  int count;

  // False if the counts describe no prefix code.
  bool build(const HuffmanSpec& spec) {
    std::memset(look, 0, sizeof look);
    count = spec.symbols;
    std::memcpy(symbols, spec.bytes + 16, static_cast<size_t>(count));
    int code = 0, k = 0;
    for (int length = 1; length <= 16; ++length) {
      first[length] = code << (16 - length);
      offset[length] = k - code;
      const int n = spec.bytes[length - 1];
      if (code + n > 1 << length) return false;
      for (int i = 0; i < n; ++i, ++code, ++k) {
        if (length > kLookBits) continue;
        const int shift = kLookBits - length;
        std::fill_n(look + (code << shift), 1 << shift, static_cast<uint16_t>(length << 8 | symbols[k]));
      }
      code <<= 1;
    }
    first[17] = 1 << 16;
    return true;
  }
};

class BitReader {
 public:
  BitReader(const uint8_t* p, const uint8_t* end) : p_(p), end_(end) {}

  // After this at least 32 bits are at hand; behind the data they are zeros, which `exhausted` notices.
  void fill() {
    if (n_ > 32) return;
    if (end_ - p_ >= 4) {
      uint32_t word;
      std::memcpy(&word, p_, 4);
      word = __builtin_bswap32(word);
      if (((~word - 0x01010101u) & word & 0x80808080u) == 0) {  // no byte is FF
        acc_ |= static_cast<uint64_t>(word) << (32 - n_);
        n_ += 32, p_ += 4;
        return;
      }
    }
    while (n_ <= 32) {
      uint64_t byte = 0;
      if (p_ < end_ && *p_ != 0xFF) {
        byte = *p_++;
      } else if (end_ - p_ >= 2 && p_[1] == 0) {
        byte = 0xFF, p_ += 2;
      } else {
        padding_ += 8;  // a marker, or the end
      }
      acc_ |= byte << (56 - n_);
      n_ += 8;
    }
  }

  uint32_t peek(int bits) const { return static_cast<uint32_t>(acc_ >> (64 - bits)); }
  void skip(int bits) { acc_ <<= bits, n_ -= bits; }
  uint32_t take(int bits) {
    if (bits == 0) return 0;
    const uint32_t value = peek(bits);
    skip(bits);
    return value;
  }
  bool exhausted() const { return padding_ > n_; }  // bits were taken that were not there

  // Whether all bits but the last byte's rest have been taken; then goes on behind marker `marker`.
  bool end_interval(int marker) {
    if (exhausted() || n_ - padding_ >= 8) return false;
    while (end_ - p_ >= 2 && p_[0] == 0xFF && p_[1] == 0xFF) ++p_;
    if (end_ - p_ < 2 || p_[0] != 0xFF || p_[1] != marker) return false;
    p_ += 2;
    acc_ = 0, n_ = padding_ = 0;
    return true;
  }

 private:
  const uint8_t *p_, *end_;
  uint64_t acc_ = 0;  // left-aligned
  int n_ = 0, padding_ = 0;
};

// The next symbol, or -1 where there is no such code.
int next_symbol(BitReader& bits, const Decoder& table) {
  const int entry = table.look[bits.peek(kLookBits)];
  if (entry) {
    bits.skip(entry >> 8);
    return entry & 255;
  }
  const auto code = static_cast<int32_t>(bits.peek(16));
  for (int length = kLookBits + 1; length <= 16; ++length) {
    const int32_t next = length == 16 ? 1 << 16 : table.first[length + 1];
    if (code >= next) continue;
    const int k = (code >> (16 - length)) + table.offset[length];
    if (k < 0 || k >= table.count) return -1;
    bits.skip(length);
    return table.symbols[k];
  }
  return -1;
}

// An optimal code of at most 16 bits (T.81 annex K.2): spec = 16 counts, then the symbols; codes and lengths by symbol.
struct Encoder {
  std::vector<uint8_t> spec;
  uint32_t code[256];
  uint8_t length[256];

  void build(const int64_t (&counts)[256]) {
    int64_t frequency[257];
    int size[257] = {}, others[257];
    std::copy(counts, counts + 256, frequency);
    frequency[256] = 1;  // no code may be all ones
    if (std::all_of(counts, counts + 256, [](int64_t n) { return n == 0; })) frequency[0] = 1;
    std::fill_n(others, 257, -1);
    int used[257], n_used = 0;
    for (int i = 0; i < 257; ++i) {
      if (frequency[i] > 0) used[n_used++] = i;
    }
    for (;;) {
      int a = -1, b = -1;  // the two rarest; the higher symbol of equals
      for (int u = 0; u < n_used; ++u) {
        const int i = used[u];
        if (frequency[i] == 0) continue;
        if (a < 0 || frequency[i] <= frequency[a]) {
          b = a, a = i;
        } else if (b < 0 || frequency[i] <= frequency[b]) {
          b = i;
        }
      }
      if (b < 0) break;
      frequency[a] += frequency[b];
      frequency[b] = 0;
      for (++size[a]; others[a] >= 0; ++size[a]) a = others[a];
      others[a] = b;
      for (++size[b]; others[b] >= 0; ++size[b]) b = others[b];
    }
    int bits[258] = {};
    for (int s : size) ++bits[s];
    bits[0] = 0;
    for (int i = 257; i > 16; --i) {  // shorten: a pair of longest codes gives way to a longer code elsewhere
      while (bits[i] > 0) {
        int j = i - 2;
        while (bits[j] == 0) --j;
        bits[i] -= 2, ++bits[i - 1], bits[j + 1] += 2, --bits[j];
      }
    }
    int longest = 16;
    while (bits[longest] == 0) --longest;
    --bits[longest];  // the reserved code
    spec.clear();
    for (int i = 1; i <= 16; ++i) spec.push_back(static_cast<uint8_t>(bits[i]));
    for (int s = 1; s <= 257; ++s) {
      for (int i = 0; i < 256; ++i) {
        if (size[i] == s) spec.push_back(static_cast<uint8_t>(i));
      }
    }
    size_t k = 16;
    uint32_t next = 0;
    for (int n = 1; n <= 16; ++n, next <<= 1) {
      for (int i = 0; i < bits[n]; ++i, ++next, ++k) code[spec[k]] = next, length[spec[k]] = static_cast<uint8_t>(n);
    }
  }
};

class BitWriter {
 public:
  explicit BitWriter(std::vector<uint8_t>& out) : out_(out) {}

  void reserve(size_t symbols) {  // 31 bits each, every byte perhaps stuffed
    if (out_.size() < at_ + symbols * 8 + 32) out_.resize(std::max(out_.size() * 2, at_ + symbols * 8 + 32));
  }
  void put(uint32_t value, int bits) {
    acc_ = acc_ << bits | value;
    n_ += bits;
    if (n_ < 32) return;
    n_ -= 32;
    const auto word = static_cast<uint32_t>(acc_ >> n_);
    if (((~word - 0x01010101u) & word & 0x80808080u) == 0) {  // no byte is FF
      const uint32_t bytes = __builtin_bswap32(word);
      std::memcpy(&out_[at_], &bytes, 4);
      at_ += 4;
    } else {
      for (int shift = 24; shift >= 0; shift -= 8) put_byte(static_cast<uint8_t>(word >> shift));
    }
  }
  void marker(int id) {  // fills the last byte with ones
    const int rest = -n_ & 7;
    acc_ = acc_ << rest | ((1u << rest) - 1);
    for (n_ += rest; n_ > 0; n_ -= 8) put_byte(static_cast<uint8_t>(acc_ >> (n_ - 8)));
    out_[at_++] = 0xFF, out_[at_++] = static_cast<uint8_t>(id);
    acc_ = 0;
  }
  size_t size() const { return at_; }

 private:
  void put_byte(uint8_t byte) {
    out_[at_++] = byte;
    if (byte == 0xFF) out_[at_++] = 0;
  }

  std::vector<uint8_t>& out_;
  size_t at_ = 0;
  uint64_t acc_ = 0;
  int n_ = 0;
};

int category(int value) { return value == 0 ? 0 : 32 - __builtin_clz(static_cast<unsigned>(value < 0 ? -value : value)); }

// SOI and the segments to keep, in their order.
std::string head(const uint8_t* data, size_t scan) {
  std::string out("\xFF\xD8", 2);
  for (size_t at = 2; at + 4 <= scan;) {
    if (data[at + 1] == 0xFF) {
      ++at;
      continue;
    }
    const int marker = data[at + 1];
    const size_t length = 2 + (static_cast<size_t>(data[at + 2]) << 8 | data[at + 3]);
    const bool jfif = marker == 0xE0 && length >= 16 && std::memcmp(data + at + 4, "JFIF", 5) == 0;
    const bool adobe = marker == 0xEE && length >= 16 && std::memcmp(data + at + 4, "Adobe", 5) == 0;
    const bool image = marker == 0xDB || marker == 0xC0 || marker == 0xC1;
    if (jfif || adobe || image) out.append(reinterpret_cast<const char*>(data + at), length);
    at += length;
  }
  return out;
}

void segment(std::string& out, int marker, const std::string& body) {
  const size_t length = body.size() + 2;
  out += {'\xFF', static_cast<char>(marker), static_cast<char>(length >> 8), static_cast<char>(length & 255)};
  out += body;
}

}  // namespace

bool JpegRecoder::read_symbols(const uint8_t* data, size_t size, const JpegHeader& h, int interval) {
  Decoder dc[3], ac[3];
  const int components = h.components;
  for (int c = 0; c < components; ++c) {
    if (!dc[c].build(h.dc[h.component[c].dc]) || !ac[c].build(h.ac[h.component[c].ac])) return false;
  }
  const int mcus = ((h.width + h.mcu_width() - 1) / h.mcu_width()) * ((h.height + h.mcu_height() - 1) / h.mcu_height());
  size_t blocks = 0;
  for (int c = 0; c < components; ++c) blocks += static_cast<size_t>(h.component[c].h * h.component[c].v);
  size_t n = 0;  // symbols so far
  intervals_.clear();
  std::memset(counts_, 0, sizeof counts_);
  BitReader bits(data + h.scan, data + size);
  int from[3] = {}, to[3] = {};  // DC predictions of the old and the new data
  for (int mcu = 0; mcu < mcus; ++mcu) {
    if (h.restart_interval > 0 && mcu > 0 && mcu % h.restart_interval == 0) {
      if (!bits.end_interval(0xD0 + (mcu / h.restart_interval - 1) % 8)) return false;
      std::fill_n(from, 3, 0);
    }
    if (symbols_.size() < n + blocks * 64) symbols_.resize(2 * symbols_.size() + blocks * 64);
    uint32_t* symbols = symbols_.data();
    if (mcu % interval == 0) {
      intervals_.push_back(n);
      std::fill_n(to, 3, 0);
    }
    for (int c = 0; c < components; ++c) {
      const uint32_t chroma = c > 0;
      for (int block = h.component[c].h * h.component[c].v; block > 0; --block) {
        bits.fill();
        const int old = next_symbol(bits, dc[c]);
        if (old < 0 || old > 11) return false;
        const int raw = static_cast<int>(bits.take(old));
        from[c] += old == 0 || raw >> (old - 1) ? raw : raw - (1 << old) + 1;
        const int difference = from[c] - to[c];
        to[c] = from[c];
        const int s = category(difference);
        if (s > 11) return false;
        const auto value = static_cast<uint32_t>(difference < 0 ? difference + (1 << s) - 1 : difference);
        symbols[n++] = chroma << 24 | static_cast<uint32_t>(s) << 16 | value;
        ++counts_[chroma][s];
        for (int k = 1; k < 64; ++k) {
          bits.fill();
          const int symbol = next_symbol(bits, ac[c]);
          if (symbol < 0) return false;
          if (symbol == 0) {  // end of block
            symbols[n++] = (2 + chroma) << 24;
            ++counts_[2 + chroma][0];
            break;
          }
          const uint32_t extra = bits.take(symbol & 15);
          symbols[n++] = (2 + chroma) << 24 | static_cast<uint32_t>(symbol) << 16 | extra;
          ++counts_[2 + chroma][symbol];
          k += symbol >> 4;
          if (k > 63 || ((symbol & 15) == 0 && symbol != 0xF0)) return false;
        }
        if (bits.exhausted()) return false;
      }
    }
  }
  intervals_.push_back(n);
  return bits.end_interval(0xD9);
}

std::string JpegRecoder::run(const uint8_t* data, size_t size, int interval) {
  JpegHeader header;
  if (interval < 1 || interval > 65535 || !parse_jpeg(data, size, header) || !read_symbols(data, size, header, interval)) return {};
  const int sets = header.components == 1 ? 1 : 2;
  Encoder codes[4];
  std::string out = head(data, header.scan);
  for (int set = 0; set < sets; ++set) {
    for (int ac = 0; ac < 2; ++ac) {
      Encoder& code = codes[2 * ac + set];
      code.build(counts_[2 * ac + set]);
      segment(out, 0xC4, std::string(1, static_cast<char>(ac << 4 | set)) + std::string(code.spec.begin(), code.spec.end()));
    }
  }
  segment(out, 0xDD, {static_cast<char>(interval >> 8), static_cast<char>(interval & 255)});
  std::string scan(1, static_cast<char>(header.components));
  for (int c = 0; c < header.components; ++c) scan += {static_cast<char>(header.component[c].id), static_cast<char>(c > 0 ? 0x11 : 0)};
  segment(out, 0xDA, scan + std::string("\0\x3F\0", 3));

  std::vector<uint8_t> bytes(size + size / 4);
  BitWriter writer(bytes);
  for (size_t i = 0; i + 1 < intervals_.size(); ++i) {
    writer.reserve(intervals_[i + 1] - intervals_[i]);
    for (size_t k = intervals_[i]; k < intervals_[i + 1]; ++k) {
      const uint32_t table = symbols_[k] >> 24, symbol = symbols_[k] >> 16 & 255;
      const Encoder& code = codes[table];
      const int extra = table < 2 ? static_cast<int>(symbol) : static_cast<int>(symbol & 15);
      writer.put(code.code[symbol] << extra | (symbols_[k] & 0xFFFF), code.length[symbol] + extra);
    }
    writer.marker(i + 2 < intervals_.size() ? 0xD0 + static_cast<int>(i % 8) : 0xD9);
  }
  out.append(reinterpret_cast<const char*>(bytes.data()), writer.size());
  return out;
}

}  // namespace dp4tl
