// Walks over entropy-coded data find what a reader of single bits finds, in every instruction set, whatever goes on in the other lane:
// the same entries, and the same damage.
#include <cstdio>
#include <string>

#include "core/jpeg/walk.h"
#include "tests/check.h"
#include "tests/jpegs.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

// The reference: bit by bit, code by code (ITU-T T.81, F.2.2).
class BitReader {
 public:
  BitReader(const uint8_t* data, const uint8_t* end) : data_(data), end_(end) {}

  // Zeros behind the data, which end at a marker.
  int bit() {
    int value = 0;
    if (at_ < end_ - data_ && !(data_[at_] == 0xFF && (data_ + at_ + 1 == end_ || data_[at_ + 1] != 0))) {
      value = data_[at_] >> (7 - bits_) & 1;
    } else {
      ++missing_;
    }
    if (++bits_ == 8) {
      bits_ = 0;
      if (!missing_) at_ += data_[at_] == 0xFF ? 2 : 1;
    }
    return value;
  }
  int number(int bits) {
    int n = 0;
    for (int i = 0; i < bits; ++i) n = 2 * n + bit();
    return n;
  }
  bool overrun() const { return missing_ > 0; }
  // Whether less than a byte is left.
  bool at_end() const {
    const ptrdiff_t next = at_ + (bits_ ? (data_[at_] == 0xFF ? 2 : 1) : 0);
    return data_ + next >= end_ || (data_[next] == 0xFF && (data_ + next + 1 == end_ || data_[next + 1] != 0));
  }
  ScanEntry entry(const int dc[3]) const {
    ScanEntry e{static_cast<uint32_t>(at_), static_cast<uint32_t>(end_ - data_), {}, static_cast<uint8_t>(bits_)};
    for (int c = 0; c < 3; ++c) e.dc[c] = static_cast<int16_t>(dc[c]);
    return e;
  }

 private:
  const uint8_t *data_, *end_;
  ptrdiff_t at_ = 0;
  int bits_ = 0, missing_ = 0;
};

int read_symbol(BitReader& bits, const HuffmanSpec& spec) {
  int code = 0, first = 0, index = 0;
  for (int length = 1; length <= 16; ++length) {
    code = 2 * code + bits.bit();
    first *= 2;
    const int n = spec.bytes[length - 1];
    if (code - first < n) return spec.bytes[16 + index + code - first];
    first += n, index += n;
  }
  return -1;
}

bool skip_block(BitReader& bits, const ScanWalk::Component& c, int& dc) {
  const int size = read_symbol(bits, c.dc);
  if (size < 0 || size > 11) return false;
  const int raw = bits.number(size);
  dc += size && raw < 1 << (size - 1) ? raw - (1 << size) + 1 : raw;
  for (int k = 1; k < 64;) {
    const int symbol = read_symbol(bits, c.ac);
    if (symbol < 0) return false;
    if ((symbol & 15) == 0 && symbol != 0xF0) return true;
    bits.number(symbol & 15);
    k += (symbol >> 4) + 1;
    if (k > 64) return false;
  }
  return true;
}

bool reference(const ScanWalk& scan, std::vector<ScanEntry>& entries) {
  BitReader bits(scan.data, scan.end);
  int dc[3] = {0, 0, 0};
  for (int mcu = 0; mcu < scan.mcus; ++mcu) {
    if (mcu % scan.interval == 0) entries.push_back(bits.entry(dc));
    for (int c = 0; c < scan.components; ++c) {
      for (int i = 0; i < scan.component[c].blocks; ++i) {
        if (!skip_block(bits, scan.component[c], dc[c]) || bits.overrun()) return false;
      }
    }
  }
  return bits.at_end();
}

bool same(const ScanEntry& a, const ScanEntry& b) {
  return a.start == b.start && a.stop == b.stop && a.skip_bits == b.skip_bits && std::equal(a.dc, a.dc + 3, b.dc);
}

struct Case {
  std::string name;
  std::vector<uint8_t> jpeg;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  unsigned seed = 0;
  for (const auto& [w, h] : {std::pair{1, 1}, {8, 9}, {17, 90}, {133, 101}, {250, 40}}) {
    for (const auto& [sh, sv] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
      for (const int quality : {1, 30, 75, 95, 100}) {
        JpegOptions o;
        o.width = w, o.height = h, o.h = sh, o.v = sv, o.quality = quality, o.optimize = ++seed % 2, o.gray = seed % 7 == 0;
        if (o.gray) o.h = o.v = 1;
        all.push_back({std::to_string(w) + "x" + std::to_string(h) + " " + std::to_string(sh) + std::to_string(sv) + " q" + std::to_string(quality), encode(o, seed)});
      }
    }
  }
  return all;
}

// One of several kinds of damage behind the header, at the end of the data more often than elsewhere.
Case damaged(const Case& whole, std::mt19937& random) {
  JpegHeader h;
  parse_jpeg(whole.jpeg.data(), whole.jpeg.size(), h);
  std::vector<uint8_t> data(whole.jpeg.begin(), whole.jpeg.end() - 2);
  const size_t n = data.size() - h.scan;
  const unsigned kind = random() % 7;
  if (kind == 0) data[h.scan + random() % n] ^= static_cast<uint8_t>(1u << random() % 8);
  if (kind == 1) data[h.scan + random() % n] = 0xFF;
  if (kind == 2) data.resize(h.scan + random() % n);
  if (kind == 3) data.resize(data.size() - std::min<size_t>(n, 1 + random() % 3));
  if (kind == 4) data.insert(data.end(), 1 + random() % 3, static_cast<uint8_t>(random()));
  if (kind == 5) data.insert(data.end(), 1 + random() % 3, 0xFF);  // fill bytes, which are no damage
  if (kind == 6) data.insert(data.end(), {0xFF, static_cast<uint8_t>(0xD0 + random() % 8), 0, 0});
  data.insert(data.end(), {0xFF, 0xD9});
  return {whole.name + " damage " + std::to_string(kind), data};
}

ScanWalk walk_of(const Case& c, int interval) {
  JpegHeader h;
  CHECK(parse_jpeg(c.jpeg.data(), c.jpeg.size(), h), "%s", c.name.c_str());
  const int mcus = h.mcus_per_row() * h.mcu_rows();
  ScanWalk walk{c.jpeg.data() + h.scan, c.jpeg.data() + c.jpeg.size() - 2, mcus, interval ? interval : mcus, h.components, {}, {}, false};
  for (int i = 0; i < h.components; ++i) walk.component[i] = {h.dc[h.component[i].dc], h.ac[h.component[i].ac], h.component[i].h * h.component[i].v};
  return walk;
}

// All cases, `together` at a time.
void compare(ScanWalker& walker, const std::vector<Case>& all, size_t together, int interval, const char* isa, int counts[2]) {
  for (size_t first = 0; first < all.size(); first += together) {
    std::vector<ScanWalk> walks;
    for (size_t i = first; i < std::min(all.size(), first + together); ++i) walks.push_back(walk_of(all[i], interval));
    walker.run(walks);
    for (size_t i = 0; i < walks.size(); ++i) {
      const std::string what = std::string(isa) + ", " + all[first + i].name + ", interval " + std::to_string(interval);
      std::vector<ScanEntry> entries;
      const bool good = reference(walks[i], entries);
      CHECK(good == walks[i].good, "%s: %s", what.c_str(), good ? "refused" : "not refused");
      counts[good]++;
      if (!good) continue;
      CHECK(entries.size() == walks[i].entries.size(), "%s: %zu entries, not %zu", what.c_str(), walks[i].entries.size(), entries.size());
      for (size_t e = 0; e < entries.size(); ++e) {
        const bool with_sums = entries.size() > 1;
        CHECK(!with_sums || same(entries[e], walks[i].entries[e]), "%s: entry %zu", what.c_str(), e);
      }
    }
  }
}

}  // namespace

int main() {
  const std::vector<Case> whole = cases();
  std::mt19937 random(1);
  std::vector<Case> all = whole;
  for (int i = 0; i < 1500; ++i) all.push_back(damaged(whole[random() % whole.size()], random));
  std::shuffle(all.begin() + static_cast<ptrdiff_t>(whole.size()), all.end(), random);
  for (Case& c : all) c.jpeg.shrink_to_fit();  // so that the sanitizer sees the end
  for (const Isa isa : supported_isas()) {
    ScanWalker walker(kernels_for(isa));
    int counts[2] = {0, 0};
    compare(walker, all, 1, 3, name_of(isa), counts);
    compare(walker, all, 2, 0, name_of(isa), counts);
    compare(walker, all, 5, 8, name_of(isa), counts);
    compare(walker, all, all.size(), 1, name_of(isa), counts);
    CHECK(counts[0] > 1000 && counts[1] > 1000, "%d damaged, %d good", counts[0], counts[1]);
    std::printf("%s: %d damaged, %d good\n", name_of(isa), counts[0], counts[1]);
  }
}
