// dp4tl_fast.kernels._native.Loader: the data plane. Translates, and releases the GIL while it waits.
#include "core/loader/loader.h"
#include "core/loader/permutation.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <optional>

#include "bindings/gil.h"
#include "bindings/register.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {
namespace {

using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tensor = nb::ndarray<nb::pytorch>;

nb::dlpack::dtype dlpack_type(DType dtype) {
  using Code = nb::dlpack::dtype_code;
  const Code code = dtype == DType::kUint8 ? Code::UInt : dtype == DType::kBfloat16 ? Code::Bfloat : Code::Float;
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(8 * bytes_of(dtype)), 1};
}

// Holds a reference to the Python object whose memory was lent; it may be released on any thread.
struct Lender {
  PyObject* object;
  void operator()(uint8_t*) const noexcept {
    nb::gil_scoped_acquire gil;
    Py_DECREF(object);
  }
};

void lend(Loader& loader, nb::object memory) {
  // Of any device: page-locked memory is the host's, but may call itself CUDA's.
  nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig> bytes;
  const bool fits = nb::try_cast(memory, bytes, false);
  if (!fits || (bytes.device_type() != nb::device::cpu::value && bytes.device_type() != nb::device::cuda_host::value)) {
    throw nb::type_error("lent memory must be uint8 [bytes], contiguous, in host memory");
  }
  loader.lend({bytes.data(), Lender{memory.release().ptr()}}, bytes.size());
}

// (views, labels, index, failures) whose tensors keep the batch alive: [n, 3, S, S] channels-last each, int64 [n], int64 [n].
// If memory was lent, its object takes the place of the views: only tensors made from it share its storage, and so keep it alive.
nb::tuple to_python(std::shared_ptr<Batch> batch, const LoaderOptions& options) {
  const Output& out = options.output;
  nb::object lent;
  if (const Lender* lender = std::get_deleter<Lender>(batch->images)) {
    lent = nb::borrow(lender->object);
    batch->images.reset();  // labels and index may live longer
  }
  auto* held = new std::shared_ptr<Batch>(std::move(batch));
  nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::shared_ptr<Batch>*>(p); });
  Batch& b = **held;
  const size_t n = b.labels.size(), s = static_cast<size_t>(out.size);
  const auto signed_s = static_cast<int64_t>(s);
  const size_t shape[4] = {n, 3, s, s};
  const int64_t strides[4] = {3 * signed_s * signed_s, 1, 3 * signed_s, 3};  // in items
  const size_t view_bytes = static_cast<size_t>(b.capacity) * 3 * s * s * bytes_of(out.dtype);
  nb::list images, failures;
  for (int v = 0; v < options.views && !lent; ++v) {
    auto* data = b.images.get() + static_cast<size_t>(v) * view_bytes;
    images.append(Tensor(data, 4, shape, owner, strides, dlpack_type(out.dtype)));
  }
  for (const Failure& f : b.failures) failures.append(nb::make_tuple(f.record, f.position, f.message));
  return nb::make_tuple(lent ? lent : nb::object(images), Tensor(b.labels.data(), 1, &n, owner, nullptr, nb::dtype<int64_t>()),
                        Tensor(b.index.data(), 1, &n, owner, nullptr, nb::dtype<int64_t>()), failures);
}

struct PyLoader {
  std::unique_ptr<Loader> loader;  // null once closed
};

Loader& open(PyLoader& self) {
  if (!self.loader) throw nb::value_error("the loader is closed");
  return *self.loader;
}

void construct(PyLoader* self, std::shared_ptr<Beton> beton, const LoaderOptions& options) {
  ReleaseGil free;
  new (self) PyLoader{std::make_unique<Loader>(std::move(beton), options)};
}

void start(PyLoader& self, const Numbers& records, const Numbers& bounds, const Numbers& windows, uint32_t epoch,
           const std::optional<Numbers>& epochs) {
  const auto copy = [](const Numbers& a) { return std::vector<int64_t>(a.data(), a.data() + a.size()); };
  std::vector<int64_t> r = copy(records), b = copy(bounds), w = copy(windows), e;
  if (epochs) e = copy(*epochs);
  Loader& loader = open(self);
  ReleaseGil free;
  loader.start(std::move(r), std::move(b), std::move(w), epoch, std::move(e));
}

nb::object next(PyLoader& self) {
  Loader& loader = open(self);
  for (;;) {
    std::shared_ptr<Batch> batch;
    Loader::Status status;
    {
      ReleaseGil free;
      status = loader.next(100, batch);  // wake up now and then, so that Ctrl-C is noticed
    }
    if (status == Loader::Status::kBatch) return to_python(std::move(batch), loader.options());
    if (status == Loader::Status::kEnd) return nb::none();
    if (status == Loader::Status::kFailed) {
      const Failure f = loader.failure();
      return nb::make_tuple(f.record, f.message);
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

nb::dict profile(PyLoader& self) {
  const Loader::Profile p = open(self).profile();
  nb::dict d;
  d["read"] = p.stages.read, d["decode"] = p.stages.decode, d["resize"] = p.stages.resize;
  d["starve"] = p.starve, d["idle"] = p.idle;
  return d;
}

nb::ndarray<nb::numpy, int64_t, nb::ndim<2>> sample_crops(const CropSpec& spec, const Numbers& widths, const Numbers& heights,
                                                          const Numbers& records, uint32_t epoch, uint32_t view) {
  const size_t n = records.size();
  if (widths.size() != n || heights.size() != n) throw nb::value_error("widths, heights and records differ in length");
  auto* boxes = new std::vector<int64_t>(n * 5);
  nb::capsule owner(boxes, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
  for (size_t i = 0; i < n; ++i) {
    const Crop c = sample_crop(spec, static_cast<int>(widths(i)), static_cast<int>(heights(i)), records(i), epoch, view);
    const int64_t row[5] = {c.x, c.y, c.width, c.height, c.flip};
    std::copy(row, row + 5, &(*boxes)[i * 5]);
  }
  return {boxes->data(), {n, 5}, owner};
}

// A field of Output that is an array: the pixel kernels read it, and may call nothing of the standard library.
template <float (Output::*Field)[3]>
void def_channels(nb::class_<Output>& output, const char* name, const char* doc) {
  output.def_prop_rw(
      name,
      [](const Output& o) {
        const float* x = o.*Field;
        return std::array<float, 3>{x[0], x[1], x[2]};
      },
      [](Output& o, const std::array<float, 3>& values) { std::copy(values.begin(), values.end(), o.*Field); }, doc);
}

void register_options(nb::module_& m) {
  nb::enum_<Transform>(m, "Transform", "How a view's rectangle is chosen.")
      .value("random_resized_crop", Transform::kRandomResizedCrop)
      .value("center_crop", Transform::kCenterCrop)
      .value("resize", Transform::kResize);
  nb::enum_<DType>(m, "DType", "Type of the output's samples.")
      .value("uint8", DType::kUint8)
      .value("float16", DType::kFloat16)
      .value("bfloat16", DType::kBfloat16)
      .value("float32", DType::kFloat32);
  nb::class_<CropSpec>(m, "CropSpec", "Which rectangle of an image a view shows. See core/pixels/crop.h.")
      .def(nb::init<>())
      .def_rw("transform", &CropSpec::transform)
      .def_rw("scale", &CropSpec::scale, "Smallest and largest share of the area.")
      .def_rw("aspect", &CropSpec::aspect, "Smallest and largest width / height.")
      .def_rw("crop_ratio", &CropSpec::crop_ratio, "Side of the centre crop as a share of the shorter side.")
      .def_rw("flip", &CropSpec::flip, "Mirror with probability 1/2.")
      .def_rw("seed", &CropSpec::seed);
  nb::class_<Output> output(m, "Output", "What a view becomes. See core/pixels/pixels.h.");
  output.def(nb::init<>()).def_rw("size", &Output::size, "Pixels per side.").def_rw("dtype", &Output::dtype);
  def_channels<&Output::scale>(output, "scale", "A sample x in 0..255 becomes x * scale + bias, per channel. Not for uint8.");
  def_channels<&Output::bias>(output, "bias", "See scale.");
  nb::class_<LoaderOptions>(m, "LoaderOptions", "See core/loader/loader.h. Loader checks the values.")
      .def(nb::init<>())
      .def_rw("crop", &LoaderOptions::crop)
      .def_rw("output", &LoaderOptions::output)
      .def_rw("views", &LoaderOptions::views, "Views per record.")
      .def_rw("threads", &LoaderOptions::threads)
      .def_rw("batch_size", &LoaderOptions::batch_size)
      .def_rw("depth", &LoaderOptions::depth, "Batches that are decoded ahead of the consumer.")
      .def_rw("skip", &LoaderOptions::skip, "Leave out records that cannot be decoded, instead of failing.")
      .def_rw("exact", &LoaderOptions::exact, "Decode every JPEG by libjpeg-turbo to RGB.")
      .def_rw("lent", &LoaderOptions::lent, "Batches are written to memory that lend() brings, not to the loader's own.")
      .def_rw("isa", &LoaderOptions::isa, "Instruction set of the hot loops: one of isas(), or auto.");
}

}  // namespace

void register_loader(nb::module_& m) {
  register_options(m);
  nb::class_<Beton>(m, "Beton", "The checked tables of a .beton file, and the file, open for reading.")
      .def("__init__", [](Beton* self, const std::string& path) { ReleaseGil free; new (self) Beton(path); }, "path"_a,
           "RuntimeError: the file cannot be read, or is damaged.")
      .def("__len__", [](const Beton& self) { return self.records.size(); });
  nb::class_<PyLoader>(m, "Loader", "Threads that fill a ring of batches. See dp4tl_fast.loaders.native.")
      .def("__init__", &construct, "beton"_a, "options"_a, "RuntimeError: an option has a value that it may not have.")
      .def("start", &start, "records"_a, "bounds"_a, "windows"_a, "epoch"_a, "epochs"_a = nb::none(),
           "Begin an epoch: batch b is records[bounds[b]:bounds[b + 1]]. Records of positions windows[w] to windows[w + 1] are read\n"
           "ahead together; no windows: each record is read when its turn comes. Views are drawn for the epoch, or for each record's own of epochs.")
      .def("lend", [](PyLoader& self, nb::object memory) { lend(open(self), std::move(memory)); }, "memory"_a,
           "Memory for one more batch of this epoch: uint8 [bytes], in host memory. Batches take it in the order of the calls.")
      .def("next", &next,
           nb::sig("def next(self) -> tuple[typing.Any, torch.Tensor, torch.Tensor, list[tuple[int, int, str]]] | tuple[int, str] | None"),
           "(views, labels, index, failures as (record, row, message)); None at the end; (record, message) when a record failed.\n"
           "Record -1: there is no memory.\n"
           "Views are a list of tensors; of a loader with lent=True, the memory that was lent for the batch.")
      .def("stop", [](PyLoader& self) { ReleaseGil free; if (self.loader) self.loader->stop(); }, "Abandon the epoch.")
      .def("close", [](PyLoader& self) { ReleaseGil free; self.loader.reset(); }, "End the threads.")
      .def("profile", &profile, nb::sig("def profile(self) -> dict[str, float]"),
           "Seconds of the running or last epoch, summed over threads: read (explicit reads; cached pages are used in place), decode,\n"
           "resize, idle (threads waited for the consumer). starve: the consumer waited for a batch.")
      .def_prop_ro("isa", [](PyLoader& self) { return name_of(open(self).isa()); });
  m.def("permute",
        [](nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> out, uint64_t seed, uint64_t epoch) {
          if (out.size() > (uint64_t{1} << 32)) throw nb::value_error("at most 2^32 numbers can be permuted");
          ReleaseGil free;
          permute(seed, epoch, out.data(), static_cast<int64_t>(out.size()));
        },
        nb::arg("out").noconvert(), "seed"_a, "epoch"_a,
        "Fill out, int64 [n], with the permutation of 0 .. n - 1 that loaders/order.py defines, its reference.");
  m.def("sample_crops", &sample_crops, "spec"_a, "widths"_a, "heights"_a, "records"_a, "epoch"_a, "view"_a,
        "x, y, width, height, flip of every sample's view: int64 [n, 5]. loaders/augment.py is the reference.");
}

}  // namespace dp4tl
