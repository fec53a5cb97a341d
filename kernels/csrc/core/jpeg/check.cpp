#include "core/jpeg/check.h"

#include "core/jpeg/header.h"
#include "core/jpeg/libjpeg.h"

namespace dp4tl {

namespace {

struct State {
  LibjpegErrors errors;
  LibjpegReader reader;
  jpeg_decompress_struct& info = reader.info;
  std::vector<JSAMPLE> line;
};

void read_header(State& s, const uint8_t* data, size_t size) {
  s.info.err = &s.errors;
  jpeg_create_decompress(&s.info);
  jpeg_mem_src(&s.info, data, size);
  jpeg_read_header(&s.info, TRUE);
}

// At an eighth of the size: all entropy-coded data are read, and hardly anything is computed.
void read_all(State& s) {
  s.info.scale_num = 1;
  s.info.scale_denom = 8;
  s.info.out_color_space = s.info.jpeg_color_space;
  s.info.do_fancy_upsampling = FALSE;
  jpeg_start_decompress(&s.info);
  s.line.resize(static_cast<size_t>(s.info.output_width) * static_cast<size_t>(s.info.output_components));
  JSAMPROW row = s.line.data();
  while (s.info.output_scanline < s.info.output_height) jpeg_read_scanlines(&s.info, &row, 1);
  jpeg_finish_decompress(&s.info);
}

// Those that only libjpeg knows are read to their end by it.
std::string why_not(const IndexTask& task) {
  State s;
  if (!s.errors.run([&] { read_header(s, task.data, task.size); })) return s.errors.why();
  if (task.result == IndexTask::Result::kDamaged) return "its entropy-coded data are damaged";
  if (task.result != IndexTask::Result::kUnusual) return {};
  if (is_implausible(s.info.image_width, s.info.image_height, task.size)) return "it claims more pixels than its bytes can hold";
  if (!s.errors.run([&] { read_all(s); })) return s.errors.why();
  return s.info.err->num_warnings ? std::string("its entropy-coded data are damaged: ") + s.errors.warning() : std::string();
}

}  // namespace

std::vector<std::string> JpegChecker::run(std::vector<IndexTask>& tasks, bool all) {
  indexer_.run(tasks);
  std::vector<std::string> why(tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (all || tasks[i].result != IndexTask::Result::kUnusual) why[i] = why_not(tasks[i]);
  }
  return why;
}

}  // namespace dp4tl
