#include "core/file/beton.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace dp4tl {
namespace {

// Byte layout, little-endian; see dp4tl_fast/beton/format.py.
constexpr size_t kHeaderBytes = 24, kFieldBytes = 1041, kAllocationBytes = 24, kImageBytes = 13;
enum FieldType : uint8_t { kFloat = 0, kInt = 1, kRgb = 2, kBytes = 3, kNdarray = 4, kJson = 5, kTensor = 6 };

template <typename T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);  // every supported target is little-endian
  return value;
}

struct Columns {  // offsets of the columns in a row of the metadata table
  size_t image = SIZE_MAX, label = SIZE_MAX, index = SIZE_MAX, row = 0;
};

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// numpy's aligned struct: integers, floats and array pointers are aligned to 8 bytes, the packed structs of images, bytes and json are not.
Columns lay_out(const File& file, const std::vector<uint8_t>& fields) {
  Columns at;
  size_t position = 0, alignment = 1;
  for (size_t i = 0; i * kFieldBytes < fields.size(); ++i) {
    const uint8_t* field = &fields[i * kFieldBytes];
    const uint8_t type = field[0];
    const char* text = reinterpret_cast<const char*>(field + 1);
    const std::string name(text, strnlen(text, 16));
    size_t bytes = 8;
    if (type == kRgb) {
      bytes = kImageBytes;
    } else if (type == kBytes || type == kJson) {
      bytes = 16;
    } else if (type == kFloat || type == kInt || type == kNdarray || type == kTensor) {
      position = round_up(position, 8);
      alignment = 8;
    } else {
      throw Error(file.path() + ": field '" + name + "' has type id " + std::to_string(type) + ", whose layout is unknown");
    }
    if (name == "image" && type == kRgb) at.image = position;
    if (name == "label" && type == kInt) at.label = position;
    if (name == "index" && type == kInt) at.index = position;
    position += bytes;
  }
  at.row = round_up(position, alignment);
  if (at.image == SIZE_MAX || at.label == SIZE_MAX) {
    throw Error(file.path() + ": has no image field 'image' or no integer field 'label'");
  }
  return at;
}

// Read rows [0, count) of `row_bytes` from `offset` in pieces, so that no table is held twice.
template <typename F>
void for_each_row(const File& file, uint64_t offset, uint64_t count, size_t row_bytes, F&& use) {
  const uint64_t piece = std::max<uint64_t>(1, (1 << 20) / row_bytes);
  std::vector<uint8_t> buffer(static_cast<size_t>(std::min(piece, count)) * row_bytes);
  for (uint64_t first = 0; first < count; first += piece) {
    const auto rows = static_cast<size_t>(std::min(piece, count - first));
    file.read(offset + first * row_bytes, rows * row_bytes, buffer.data());
    for (size_t i = 0; i < rows; ++i) use(first + i, &buffer[i * row_bytes]);
  }
}

}  // namespace

File::File(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw Error(path_ + ": cannot be opened: " + std::strerror(errno));
  struct stat info;
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd_);
    throw Error(path_ + ": not a regular file");
  }
  size_ = static_cast<uint64_t>(info.st_size);
  // Only what is asked for is read: records are far apart in a shuffled epoch, and readahead would fetch pruned ones.
  ::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
  mapping_ = std::make_unique<Mapping>(fd_, size_);
}

File::~File() {
  mapping_.reset();
  ::close(fd_);
}

const uint8_t* File::view(uint64_t offset, size_t size) const {
  if (!mapping_->data() || offset > size_ || size > size_ - offset) return nullptr;
  return mapping_->data() + offset;
}

void File::check() const {
  if (mapping_->lost()) throw Error("is no longer in the file. Was it truncated while open?");
}

void File::prefetch(uint64_t offset, size_t size) const {
  char byte;
  iovec one{&byte, 1};
  const auto cached = [&](uint64_t at) { return ::preadv2(fd_, &one, 1, static_cast<off_t>(at), RWF_NOWAIT) == 1; };
  if (size == 0 || (cached(offset) && cached(offset + size - 1))) return;  // saves the system's walk over its pages
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_WILLNEED);
}

void File::read(uint64_t offset, size_t size, void* to) const {
  auto* p = static_cast<uint8_t*>(to);
  while (size > 0) {
    const ssize_t n = ::pread(fd_, p, size, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(std::string("cannot be read: ") + std::strerror(errno));
    if (n == 0) {
      throw Error("needs " + std::to_string(size) + " more bytes at " + std::to_string(offset) +
                  ", but the file ends there. Was it truncated while open?");
    }
    p += n;
    offset += static_cast<uint64_t>(n);
    size -= static_cast<size_t>(n);
  }
}

Beton::Beton(const std::string& path) : file(path) {
  const auto fail = [&](const std::string& message) { throw Error(path + ": " + message); };
  const uint64_t end = file.size();
  if (end < kHeaderBytes) fail("only " + std::to_string(end) + " bytes long: no .beton header");
  uint8_t header[kHeaderBytes];
  file.read(0, sizeof header, header);
  const auto version = load<uint16_t>(header), num_fields = load<uint16_t>(header + 2);
  const auto num_samples = load<uint64_t>(header + 8), tables_end = load<uint64_t>(header + 16);
  if (version != 2) fail("format version " + std::to_string(version) + ", but only version 2 is known. Is it a .beton file?");
  if (tables_end == 0) fail("its writer never finished (the allocation table's pointer is 0). Write it again");

  const uint64_t fields_end = kHeaderBytes + uint64_t{num_fields} * kFieldBytes;
  if (fields_end > end) fail("field descriptors end beyond the file. Is it truncated?");
  std::vector<uint8_t> fields(static_cast<size_t>(fields_end - kHeaderBytes));
  file.read(kHeaderBytes, fields.size(), fields.data());
  const Columns at = lay_out(file, fields);
  if (num_samples > (end - fields_end) / at.row) fail("metadata table ends beyond the file. Is it truncated?");
  const uint64_t data_start = fields_end + num_samples * at.row;
  if (tables_end < data_start || tables_end > end || (end - tables_end) % kAllocationBytes != 0) {
    fail("allocation table at " + std::to_string(tables_end) + " does not fit a file of " + std::to_string(end) +
         " bytes. Is it truncated?");
  }

  auto& places = records.places_;
  auto& labels = records.labels_;
  auto& index = records.index_;
  places.resize(static_cast<size_t>(num_samples));
  labels.resize(places.size());
  for_each_row(file, fields_end, num_samples, at.row, [&](uint64_t i, const uint8_t* row) {
    const uint8_t* image = row + at.image;
    const auto offset = load<uint64_t>(image + 5);
    if (image[0] > 1) fail("record " + std::to_string(i) + " has image mode " + std::to_string(image[0]) + "; known are 0 and 1");
    if (offset >= end) {
      fail("record " + std::to_string(i) + " has its bytes at " + std::to_string(offset) + ", beyond the file. The file is corrupt");
    }
    places[i] = {image[0], offset, UINT32_MAX, load<uint16_t>(image + 1), load<uint16_t>(image + 3)};
    labels[i] = load<int64_t>(row + at.label);
    const int64_t own = at.index == SIZE_MAX ? static_cast<int64_t>(i) : load<int64_t>(row + at.index);
    if (index.empty() && own != static_cast<int64_t>(i)) {
      index.resize(places.size());
      for (uint64_t j = 0; j < i; ++j) index[j] = static_cast<int64_t>(j);
    }
    if (!index.empty()) index[i] = own;
  });
  for_each_row(file, tables_end, (end - tables_end) / kAllocationBytes, kAllocationBytes, [&](uint64_t, const uint8_t* row) {
    const auto owner = load<uint64_t>(row), offset = load<uint64_t>(row + 8), size = load<uint64_t>(row + 16);
    if (owner >= num_samples) {
      fail("allocation table names sample " + std::to_string(owner) + ", but there are only " + std::to_string(num_samples));
    }
    if (places[owner].offset == offset && size < UINT32_MAX) places[owner].size = static_cast<uint32_t>(size);
  });
  for (size_t i = 0; i < records.size(); ++i) {
    const Record r = records[i];
    const bool inside = r.size != UINT32_MAX && r.offset >= data_start && r.offset <= tables_end && r.size <= tables_end - r.offset;
    const bool fits = !r.raw || r.size == uint64_t{3} * r.width * r.height;
    if (!inside || !fits || r.width == 0 || r.height == 0) {
      fail("record " + std::to_string(i) + " (class " + std::to_string(r.label) + ", " + std::to_string(r.width) + " x " +
           std::to_string(r.height) + ") has no valid bytes at " + std::to_string(r.offset) + ". The file is corrupt");
    }
  }
}

}  // namespace dp4tl
