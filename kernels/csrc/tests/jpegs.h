// JPEGs made by libjpeg-turbo for the tests, and its own decoded planes as the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>
// jpeglib.h needs size_t and FILE before it.
#include <jpeglib.h>

#include "core/jpeg/index.h"

namespace dp4tl::test {

struct JpegOptions {
  int width = 64, height = 48, quality = 90;
  int h = 1, v = 1;  // luma sampling factors
  bool gray = false, progressive = false, optimize = false;
  int restart_interval = 0;  // MCUs
};

// Waves, noise and flat areas: blocks of every kind.
inline std::vector<uint8_t> picture(int width, int height, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> pixels(static_cast<size_t>(width) * height * 3);
  const unsigned fx = random() % 23 + 1, fy = random() % 19 + 1;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        const unsigned wave = (x * fx + y * fy * (c + 1)) / 3 % 256;
        const bool flat = (x / 24 + y / 16) % 3 == 0;
        pixels[(static_cast<size_t>(y) * width + x) * 3 + c] = static_cast<uint8_t>(flat ? 40 * c + 90 : (wave + random() % 64) % 256);
      }
    }
  }
  return pixels;
}

inline std::vector<uint8_t> encode(const JpegOptions& o, unsigned seed) {
  const std::vector<uint8_t> pixels = picture(o.width, o.height, seed);
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* out = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &out, &size);
  info.image_width = static_cast<JDIMENSION>(o.width);
  info.image_height = static_cast<JDIMENSION>(o.height);
  info.input_components = 3;
  info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_colorspace(&info, o.gray ? JCS_GRAYSCALE : JCS_YCbCr);
  jpeg_set_quality(&info, o.quality, TRUE);
  info.comp_info[0].h_samp_factor = o.h;
  info.comp_info[0].v_samp_factor = o.v;
  info.optimize_coding = o.optimize;
  info.restart_interval = static_cast<unsigned>(o.restart_interval);
  if (o.progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  while (info.next_scanline < info.image_height) {
    auto* row = const_cast<uint8_t*>(&pixels[static_cast<size_t>(info.next_scanline) * o.width * 3]);
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  std::vector<uint8_t> bytes(out, out + size);
  std::free(out);
  return bytes;
}

inline IndexTask task_of(const std::vector<uint8_t>& jpeg, int pixels) {
  IndexTask task{};
  task.data = jpeg.data(), task.size = jpeg.size(), task.pixels = pixels;
  return task;
}

inline IndexTask indexed_alone(JpegIndexer& indexer, const std::vector<uint8_t>& jpeg, int pixels) {
  std::vector<IndexTask> tasks{task_of(jpeg, pixels)};
  indexer.run(tasks);
  return tasks[0];
}

// The JPEG with the index.
inline std::vector<uint8_t> insert_index(const IndexTask& task) {
  std::vector<uint8_t> whole(task.size + task.segment.size());
  task.write(whole.data());
  return whole;
}

struct Reference {
  int width = 0, height = 0;  // of the padded plane
  std::vector<uint8_t> samples;
};

// The planes before upsampling and colour conversion, padded to whole MCUs.
inline std::vector<Reference> decode_planes(const std::vector<uint8_t>& jpeg) {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, jpeg.data(), jpeg.size());
  jpeg_read_header(&info, TRUE);
  info.raw_data_out = TRUE;
  info.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&info);
  std::vector<Reference> planes(static_cast<size_t>(info.num_components));
  const int lines = info.max_v_samp_factor * DCTSIZE;
  const int mcu_rows = (static_cast<int>(info.image_height) + lines - 1) / lines;
  for (size_t i = 0; i < planes.size(); ++i) {
    const auto& c = info.comp_info[i];
    const int mcu_columns = (static_cast<int>(info.image_width) + info.max_h_samp_factor * DCTSIZE - 1) / (info.max_h_samp_factor * DCTSIZE);
    planes[i].width = mcu_columns * c.h_samp_factor * DCTSIZE;
    planes[i].height = mcu_rows * c.v_samp_factor * DCTSIZE;
    planes[i].samples.resize(static_cast<size_t>(planes[i].width) * planes[i].height);
  }
  for (int row = 0; row < mcu_rows; ++row) {
    std::vector<std::vector<JSAMPROW>> rows(planes.size());
    JSAMPARRAY arrays[4] = {};
    for (size_t i = 0; i < planes.size(); ++i) {
      const int n = info.comp_info[i].v_samp_factor * DCTSIZE;
      for (int y = 0; y < n; ++y) rows[i].push_back(&planes[i].samples[static_cast<size_t>(row * n + y) * planes[i].width]);
      arrays[i] = rows[i].data();
    }
    jpeg_read_raw_data(&info, arrays, static_cast<JDIMENSION>(lines));
  }
  jpeg_abort_decompress(&info);
  jpeg_destroy_decompress(&info);
  return planes;
}

// Planes of size[c] x size[c] samples per block from its lowest frequencies, in floating point: orthonormal DCTs of both sizes.
inline std::vector<Reference> shrunk_planes(const std::vector<uint8_t>& jpeg, const std::vector<int>& size) {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, jpeg.data(), jpeg.size());
  jpeg_read_header(&info, TRUE);
  jvirt_barray_ptr* arrays = jpeg_read_coefficients(&info);
  std::vector<Reference> planes(static_cast<size_t>(info.num_components));
  const double pi = std::acos(-1.0);
  for (size_t i = 0; i < planes.size(); ++i) {
    const auto& c = info.comp_info[i];
    const int n = size[i];
    Reference& plane = planes[i];
    plane.width = static_cast<int>(c.width_in_blocks) * n, plane.height = static_cast<int>(c.height_in_blocks) * n;
    plane.samples.resize(static_cast<size_t>(plane.width) * plane.height);
    for (JDIMENSION row = 0; row < c.height_in_blocks; ++row) {
      JBLOCKARRAY blocks = (*info.mem->access_virt_barray)(reinterpret_cast<j_common_ptr>(&info), arrays[i], row, 1, FALSE);
      for (JDIMENSION column = 0; column < c.width_in_blocks; ++column) {
        for (int y = 0; y < n; ++y) {
          for (int x = 0; x < n; ++x) {
            double sum = 0;
            for (int v = 0; v < n; ++v) {
              for (int u = 0; u < n; ++u) {
                const double alpha = (u ? std::sqrt(2.0 / n) : std::sqrt(1.0 / n)) * (v ? std::sqrt(2.0 / n) : std::sqrt(1.0 / n));
                const double f = blocks[0][column][v * 8 + u] * static_cast<double>(c.quant_table->quantval[v * 8 + u]) * n / 8;
                sum += alpha * f * std::cos((2 * x + 1) * u * pi / (2 * n)) * std::cos((2 * y + 1) * v * pi / (2 * n));
              }
            }
            const double level = std::min(255.0, std::max(0.0, sum + 128));
            plane.samples[(static_cast<size_t>(row) * n + y) * plane.width + column * n + x] = static_cast<uint8_t>(std::lround(level));
          }
        }
      }
    }
  }
  jpeg_abort_decompress(&info);
  jpeg_destroy_decompress(&info);
  return planes;
}

}  // namespace dp4tl::test
