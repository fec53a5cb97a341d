// The crop decoder gives libjpeg-turbo's samples bit for bit, in every instruction set, with and without restart markers and an
// index; damaged data are refused or decoded, never read out of bounds.
#include "core/jpeg/crop_decoder.h"

#include <cstring>
#include <string>

#include "core/error.h"
#include "core/jpeg/check.h"
#include "core/jpeg/transcode.h"
#include "tests/check.h"
#include "tests/jpegs.h"

using namespace dp4tl;
using namespace dp4tl::test;

namespace {

void compare(const Pixels& pixels, const std::vector<Reference>& reference, const Rect& wanted, const std::string& what) {
  for (size_t i = 0; i < reference.size(); ++i) {
    const Plane& p = pixels.planes[i];
    // Samples of the crop, rounded outwards.
    const int x0 = wanted.x / p.step_x, x1 = (wanted.x + wanted.width + p.step_x - 1) / p.step_x;
    const int y0 = wanted.y / p.step_y, y1 = (wanted.y + wanted.height + p.step_y - 1) / p.step_y;
    for (int y = y0; y < y1; ++y) {
      for (int x = x0; x < x1; ++x) {
        const int got = p.data[(y - p.top) * p.stride + x - p.left];
        const int want = reference[i].samples[static_cast<size_t>(y) * reference[i].width + x];
        CHECK(got == want, "%s plane %zu sample %d,%d: %d, libjpeg-turbo has %d", what.c_str(), i, x, y, got, want);
      }
    }
  }
}

void check_crops(const Kernels& kernels, const std::vector<uint8_t>& jpeg, const JpegOptions& o, unsigned seed, const std::string& what) {
  const std::vector<Reference> reference = decode_planes(jpeg);
  CropDecoder decoder(kernels);
  std::mt19937 random(seed);
  for (int crop = 0; crop < 6; ++crop) {
    Rect r{0, 0, o.width, o.height};
    if (crop) {
      r.x = static_cast<int>(random() % o.width), r.y = static_cast<int>(random() % o.height);
      r.width = 1 + static_cast<int>(random() % (o.width - r.x)), r.height = 1 + static_cast<int>(random() % (o.height - r.y));
    }
    Pixels pixels;
    CHECK(decoder.decode(jpeg.data(), jpeg.size(), o.width, o.height, r, pixels), "%s is refused", what.c_str());
    compare(pixels, reference, r, what);
  }
}

// The JPEG with an index, or as it is if it needs none.
std::vector<uint8_t> with_index(const Kernels& kernels, const std::vector<uint8_t>& jpeg, int pixels) {
  JpegIndexer indexer(kernels);
  const IndexTask task = indexed_alone(indexer, jpeg, pixels);
  CHECK(task.result != IndexTask::Result::kDamaged, "refused");
  return task.result == IndexTask::Result::kIndexed ? insert_index(task) : jpeg;
}

std::vector<JpegOptions> ordinary() {
  std::vector<JpegOptions> all;
  for (const auto& [w, h] : {std::pair{1, 1}, {8, 8}, {17, 9}, {64, 48}, {133, 101}, {250, 40}}) {
    for (const auto& [sh, sv] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
      for (const int quality : {5, 75, 96, 100}) {
        for (const int restart : {0, 1, 4, 7}) {
          JpegOptions o;
          o.width = w, o.height = h, o.h = sh, o.v = sv, o.quality = quality, o.restart_interval = restart;
          o.optimize = (quality + restart) % 2;
          all.push_back(o);
        }
      }
    }
    JpegOptions gray;
    gray.width = w, gray.height = h, gray.gray = true;
    all.push_back(gray);
  }
  return all;
}

void same_as_turbo(const Kernels& kernels) {
  unsigned seed = 0;
  for (const JpegOptions& o : ordinary()) {
    const std::string what = std::string(name_of(kernels.isa)) + " " + std::to_string(o.width) + "x" + std::to_string(o.height) + " " +
                             std::to_string(o.h) + std::to_string(o.v) + " q" + std::to_string(o.quality) + " r" + std::to_string(o.restart_interval);
    const std::vector<uint8_t> jpeg = encode(o, ++seed);
    check_crops(kernels, jpeg, o, seed, what);
    for (const int pixels : {8, 24, 64}) {
      const std::vector<uint8_t> indexed = with_index(kernels, jpeg, pixels);
      CHECK((indexed == jpeg) == (o.restart_interval > 0), "%s: %zu bytes", what.c_str(), indexed.size());
      if (indexed != jpeg) check_crops(kernels, indexed, o, seed, what + " with an index");
    }
  }
}

// The index is used: where it points elsewhere, or one part of it is wrong, other samples come or the JPEG is decoded without it.
void index_matters(const Kernels& kernels) {
  JpegOptions o;
  o.width = 640, o.height = 480;
  const std::vector<uint8_t> plain = encode(o, 3), indexed = with_index(kernels, plain, 64);
  JpegHeader header;
  CHECK(parse_jpeg(indexed.data(), indexed.size(), header) && header.index);
  const auto first = static_cast<size_t>(header.index - indexed.data());
  CHECK(first > 100 && header.index_bytes == 18 + 8 * 599, "%zu bytes", header.index_bytes);
  std::vector<ScanEntry> entries;
  CHECK(read_index(header, indexed.data(), indexed.size(), 4799, entries) == 8 && entries.size() == 600);
  CHECK(read_index(header, indexed.data(), indexed.size(), 16, entries) == 8 && entries.size() == 3);
  for (size_t at = 6; at < 18; ++at) {  // version, components, interval, scan bytes, check
    std::vector<uint8_t> stale = indexed;
    stale[first + at] ^= 1;
    CHECK(parse_jpeg(stale.data(), stale.size(), header) && !read_index(header, stale.data(), stale.size(), 4799, entries), "byte %zu", at);
    check_crops(kernels, stale, o, 9, "a stale index");
  }
  std::vector<uint8_t> moved = indexed;
  for (size_t i = 0; i < 599; ++i) moved[first + 18 + 8 * i + 3] ^= 4;  // luma's DC predictors
  CropDecoder decoder(kernels);
  Pixels right, wrong;
  const Rect corner{500, 400, 100, 60};
  CHECK(decoder.decode(indexed.data(), indexed.size(), o.width, o.height, corner, right));
  const std::vector<uint8_t> kept(right.planes[0].data, right.planes[0].data + 8 * right.planes[0].stride);
  CHECK(decoder.decode(moved.data(), moved.size(), o.width, o.height, corner, wrong));
  CHECK(std::memcmp(wrong.planes[0].data, kept.data(), kept.size()) != 0, "the index was not used");
}

// The index is one segment more; every other byte stays as it was.
void index_is_spliced_in(const Kernels& kernels) {
  JpegOptions o;
  o.width = 640, o.height = 480;
  const std::vector<uint8_t> plain = encode(o, 3), indexed = with_index(kernels, plain, 64);
  JpegHeader before, after;
  CHECK(parse_jpeg(plain.data(), plain.size(), before) && parse_jpeg(indexed.data(), indexed.size(), after) && after.index);
  const size_t segment = 4 + after.index_bytes, at = static_cast<size_t>(after.index - indexed.data()) - 4;
  CHECK(indexed.size() == plain.size() + segment && after.scan == before.scan + segment, "%zu bytes", indexed.size());
  CHECK(indexed[at] == 0xFF && indexed[at + 1] == 0xEF, "at %zu", at);
  std::vector<uint8_t> rest(indexed);
  rest.erase(rest.begin() + static_cast<ptrdiff_t>(at), rest.begin() + static_cast<ptrdiff_t>(at + segment));
  CHECK(rest == plain);
}

// Every start, in blocks of exactly their size: stuffed FF 00, runs of FF, and an FF as the last byte are no end.
void ends() {
  const std::vector<uint8_t> bytes = {0xFF, 0xD8, 0xD9, 0xFF, 0x00, 0xD9, 0xFF, 0xFF, 0xD9, 1, 2, 0xFF, 0xD9, 0xFF};
  for (size_t size = 0; size <= bytes.size(); ++size) {
    const std::vector<uint8_t> exact(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));
    for (size_t start = 0; start <= size + 2; ++start) {
      size_t expected = 0;
      for (size_t i = start; !expected && i + 1 < size; ++i) expected = exact[i] == 0xFF && exact[i + 1] == 0xD9 ? i + 2 : 0;
      const size_t got = end_of_jpeg(exact.data(), size, start);
      CHECK(got == expected, "%zu of %zu: %zu, not %zu", start, size, got, expected);
    }
  }
}

// Shrunk planes are within a level of the floating-point ones, and subsampled chroma shrinks less.
void shrunk(const Kernels& kernels) {
  unsigned seed = 50;
  for (JpegOptions o : ordinary()) {
    if (o.width < 17 || o.restart_interval == 1) continue;
    const std::vector<uint8_t> jpeg = encode(o, ++seed);
    CropDecoder decoder(kernels);
    for (const int shrink : {2, 4, 8}) {
      const int luma = 8 / shrink, chroma = std::min(8, luma * std::min(o.h, o.v));
      const std::vector<Reference> reference = shrunk_planes(jpeg, {luma, chroma, chroma});
      const Rect r{o.width / 5, o.height / 7, o.width / 2, o.height / 2};
      Pixels pixels;
      CHECK(decoder.decode(jpeg.data(), jpeg.size(), o.width, o.height, r, pixels, shrink), "refused");
      for (size_t i = 0; i < reference.size(); ++i) {
        const Plane& p = pixels.planes[i];
        CHECK(p.step_x == shrink * (i ? o.h * luma / chroma : 1) && p.step_y == shrink * (i ? o.v * luma / chroma : 1), "plane %zu: step %d", i, p.step_x);
        for (int y = r.y / p.step_y; y < (r.y + r.height + p.step_y - 1) / p.step_y; ++y) {
          for (int x = r.x / p.step_x; x < (r.x + r.width + p.step_x - 1) / p.step_x; ++x) {
            const int got = p.data[(y - p.top) * p.stride + x - p.left];
            const int want = reference[i].samples[static_cast<size_t>(y) * reference[i].width + x];
            CHECK(std::abs(got - want) <= 1, "%s 1/%d plane %zu sample %d,%d: %d, not %d", name_of(kernels.isa), shrink, i, x, y, got, want);
          }
        }
      }
    }
  }
}

// The planes of a crop hold all that the resize reads around it, however far they are shrunk: it makes the same of the whole image's.
void margins(const Kernels& kernels) {
  CropDecoder decoder(kernels);
  Resizer resizer(kernels);
  Output out;
  out.size = 9;
  std::vector<uint8_t> whole(static_cast<size_t>(out.size) * out.size * 3), alone(whole);
  std::mt19937 random(4);
  for (const auto& [h, v] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
    JpegOptions o;
    o.width = 250, o.height = 190, o.h = h, o.v = v;
    const std::vector<uint8_t> jpeg = encode(o, random());
    for (int round = 0; round < 80; ++round) {
      const int shrink = 1 << round % 4;
      Crop crop{static_cast<int>(random() % 160), static_cast<int>(random() % 100), 0, 0, round % 3 == 0};
      crop.width = 20 + static_cast<int>(random() % 70), crop.height = 20 + static_cast<int>(random() % 70);
      Pixels pixels;
      CHECK(decoder.decode(jpeg.data(), jpeg.size(), o.width, o.height, {0, 0, o.width, o.height}, pixels, shrink));
      resizer.run(pixels, crop, out, whole.data());
      CHECK(decoder.decode(jpeg.data(), jpeg.size(), o.width, o.height, {crop.x, crop.y, crop.width, crop.height}, pixels, shrink));
      resizer.run(pixels, crop, out, alone.data());
      CHECK(whole == alone, "%s: %d x %d at %d,%d, sampled %d x %d, shrunk to 1/%d", name_of(kernels.isa), crop.width, crop.height, crop.x,
            crop.y, h, v, shrink);
    }
  }
}

// A progressive JPEG is left to libjpeg-turbo; made sequential it is an ordinary one, of the same samples.
void progressive(const Kernels& kernels) {
  JpegOptions o;
  o.width = 90, o.height = 70, o.h = o.v = 2, o.progressive = true;
  const std::vector<uint8_t> jpeg = encode(o, 5);
  CropDecoder decoder(kernels);
  Pixels pixels;
  CHECK(!decoder.decode(jpeg.data(), jpeg.size(), o.width, o.height, {0, 0, o.width, o.height}, pixels));
  const std::string baseline = make_sequential(jpeg.data(), jpeg.size());
  const Rect all{0, 0, o.width, o.height};
  CHECK(decoder.decode(reinterpret_cast<const uint8_t*>(baseline.data()), baseline.size(), o.width, o.height, all, pixels));
  compare(pixels, decode_planes(jpeg), all, "progressive");
}

// libjpeg-turbo's crops of a few pixels, at the edges too, hold what the whole image has there: chroma is upsampled by the same rule.
void narrow_crops() {
  unsigned seed = 80;
  TurboDecoder turbo;
  for (const auto& [h, v] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {4, 2}}) {
    for (const int side : {1, 2, 3, 4, 5, 15, 16, 17, 18, 31, 33, 34, 48, 65, 67}) {
      JpegOptions o;
      o.width = side, o.height = 2 * side + 1, o.h = h, o.v = v;
      const std::vector<uint8_t> jpeg = encode(o, ++seed);
      const Pixels all = turbo.decode(jpeg.data(), jpeg.size(), o.width, o.height, {0, 0, o.width, o.height});
      const std::vector<uint8_t> whole(all.planes[0].data, all.planes[0].data + all.planes[0].stride * o.height);
      for (int x = 0; x < o.width; ++x) {
        for (int n = 1; n <= std::min(3, o.width - x); ++n) {
          for (const int y : {0, (x * 7 + n) % o.height}) {
            const Plane p = turbo.decode(jpeg.data(), jpeg.size(), o.width, o.height, {x, y, n, o.height - y}).planes[0];
            for (int row = y; row < o.height; ++row) {
              CHECK(std::memcmp(p.data + (row - p.top) * p.stride + 3 * (x - p.left), &whole[static_cast<size_t>((row * o.width + x) * 3)],
                                static_cast<size_t>(3 * n)) == 0,
                    "columns %d to %d, row %d of %d x %d pixels, sampled %d x %d", x, x + n - 1, row, o.width, o.height, h, v);
            }
          }
        }
      }
    }
  }
}

// What is whole passes the check, of every kind; what is cut or lacks a table does not, also right after one that has it.
void checked(const Kernels& kernels) {
  JpegChecker checker(kernels);
  const auto why_not = [&](const std::vector<uint8_t>& jpeg) {
    std::vector<IndexTask> tasks{task_of(jpeg, 0)};
    return checker.run(tasks)[0];
  };
  unsigned seed = 200;
  for (JpegOptions o : ordinary()) {
    o.progressive = ++seed % 5 == 0;
    std::vector<uint8_t> jpeg = encode(o, seed);
    const std::string why = why_not(jpeg);
    CHECK(why.empty(), "%d x %d, restarts %d: %s", o.width, o.height, o.restart_interval, why.c_str());
    std::vector<uint8_t> cut(jpeg.begin(), jpeg.end() - 5);
    cut.insert(cut.end(), {0xFF, 0xD9});
    if (o.width > 8) CHECK(!why_not(cut).empty(), "%d x %d, cut", o.width, o.height);
    size_t at = 2;
    while (jpeg[at + 1] != 0xDB) at += 2 + static_cast<size_t>(jpeg[at + 2] << 8 | jpeg[at + 3]);
    jpeg[at + 1] = 0xFE;  // its quantisation table is a comment now
    CHECK(!why_not(jpeg).empty(), "%d x %d, without a table", o.width, o.height);
  }
}

// Any damage is either refused or decoded to something; the sanitizers watch the bounds. The bytes are in a block of exactly their
// size, so that one byte too far is noticed.
void damaged(const Kernels& kernels) {
  std::mt19937 random(1);
  CropDecoder decoder(kernels);
  TurboDecoder turbo;
  int refused = 0, decoded = 0;
  for (int round = 0; round < 1500; ++round) {
    JpegOptions o;
    o.width = 70, o.height = 50, o.h = 1 + round % 2, o.v = 1 + round / 2 % 2, o.restart_interval = round % 3 * 2;
    std::vector<uint8_t> jpeg = encode(o, static_cast<unsigned>(round % 7));
    if (round % 4 < 2) jpeg = with_index(kernels, jpeg, 16);
    if (round % 5 == 0) {
      jpeg.resize(random() % jpeg.size());
    } else {
      for (unsigned i = 0; i <= random() % 4; ++i) jpeg[random() % jpeg.size()] ^= static_cast<uint8_t>(1u << random() % 8);
    }
    std::vector<uint8_t> exact(jpeg);
    exact.shrink_to_fit();
    Pixels pixels;
    const Rect r{static_cast<int>(random() % 40), static_cast<int>(random() % 30), 25, 15};
    (decoder.decode(exact.data(), exact.size(), o.width, o.height, r, pixels, 1 << round % 4) ? decoded : refused) += 1;
    std::vector<IndexTask> tasks{task_of(exact, 16)};
    JpegIndexer(kernels).run(tasks);
    try {
      turbo.decode(exact.data(), exact.size(), o.width, o.height, r);
    } catch (const Error&) {
    }
  }
  CHECK(refused > 100 && decoded > 100, "%d refused, %d decoded: the damage is too mild or too hard to test anything", refused, decoded);
}

}  // namespace

int main() {
  ends();
  narrow_crops();
  for (const Isa isa : supported_isas()) {
    const Kernels& kernels = kernels_for(isa);
    CHECK(isa == kernels.isa);
    same_as_turbo(kernels);
    index_is_spliced_in(kernels);
    index_matters(kernels);
    shrunk(kernels);
    margins(kernels);
    progressive(kernels);
    checked(kernels);
    damaged(kernels);
    std::printf("%s: good\n", name_of(kernels.isa));
  }
}
