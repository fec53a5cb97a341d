// dp4tl_fast.kernels._native.Loader: the data plane. Translates, and releases the GIL while it waits.
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/register.h"
#include "core/error.h"
#include "core/loader/loader.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dp4tl {
namespace {

using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tensor = nb::ndarray<nb::pytorch>;

template <typename T>
T choice(const std::string& name, std::initializer_list<std::pair<const char*, T>> known) {
  for (const auto& [key, value] : known) {
    if (name == key) return value;
  }
  throw nb::value_error(("unknown choice " + name).c_str());
}

DType dtype_named(const std::string& name) {
  return choice<DType>(name, {{"uint8", DType::kUint8}, {"float16", DType::kFloat16}, {"bfloat16", DType::kBfloat16}, {"float32", DType::kFloat32}});
}

nb::dlpack::dtype dlpack_type(DType dtype) {
  using Code = nb::dlpack::dtype_code;
  const Code code = dtype == DType::kUint8 ? Code::UInt : dtype == DType::kBfloat16 ? Code::Bfloat : Code::Float;
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(8 * bytes_of(dtype)), 1};
}

// Holds the Python object whose memory was lent, and lets go of it on whichever thread that happens.
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
    throw nb::type_error("lent memory must be uint8 [bytes], contiguous, the host's");
  }
  loader.lend({bytes.data(), Lender{memory.release().ptr()}}, bytes.size());
}

// (views, labels, index, failures) whose tensors keep the batch alive: [n, 3, S, S] channels-last each, int64 [n], int64 [n].
// Instead of the views, the object whose memory was lent for them: only views that it makes itself know their owner.
nb::tuple to_python(std::shared_ptr<Batch> batch, const Output& out, int views) {
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
  for (int v = 0; v < views && !lent; ++v) {
    auto* data = b.images.get() + static_cast<size_t>(v) * view_bytes;
    images.append(Tensor(data, 4, shape, owner, strides, dlpack_type(out.dtype)));
  }
  for (const Failure& f : b.failures) failures.append(nb::make_tuple(f.record, f.position, f.message));
  return nb::make_tuple(lent ? lent : nb::object(images), Tensor(b.labels.data(), 1, &n, owner, nullptr, nb::dtype<int64_t>()),
                        Tensor(b.index.data(), 1, &n, owner, nullptr, nb::dtype<int64_t>()), failures);
}

// A loader and what to_python needs to know of it.
struct PyLoader {
  Output output;
  int views;
  std::unique_ptr<Loader> loader;  // null once closed
};

Loader& open(PyLoader& self) {
  if (!self.loader) throw nb::value_error("the loader is closed");
  return *self.loader;
}

void construct(PyLoader* self, std::shared_ptr<Beton> beton, const std::string& transform, std::pair<double, double> scale,
               std::pair<double, double> aspect, double crop_ratio, bool flip, uint64_t seed, int size, const std::string& dtype,
               const std::vector<float>& mul, const std::vector<float>& add, int views, int threads, int batch_size, int depth, bool skip,
               bool exact, const std::string& isa, bool lent) {
  if (mul.size() != 3 || add.size() != 3) throw nb::value_error("mul and add need three values");
  if (size < 1 || views < 1 || threads < 1 || batch_size < 1 || depth < 1) throw nb::value_error("sizes and counts must be positive");
  LoaderOptions o;
  o.crop.transform = choice<Transform>(transform, {{"random_resized_crop", Transform::kRandomResizedCrop},
                                                   {"center_crop", Transform::kCenterCrop},
                                                   {"resize", Transform::kResize}});
  o.crop.scale[0] = scale.first, o.crop.scale[1] = scale.second;
  o.crop.aspect[0] = aspect.first, o.crop.aspect[1] = aspect.second;
  o.crop.crop_ratio = crop_ratio;
  o.crop.flip = flip;
  o.crop.seed = seed;
  o.output.size = size;
  o.output.dtype = dtype_named(dtype);
  std::copy(mul.begin(), mul.end(), o.output.scale);
  std::copy(add.begin(), add.end(), o.output.bias);
  o.views = views, o.threads = threads, o.batch_size = batch_size, o.depth = depth, o.skip = skip, o.exact = exact, o.lent = lent, o.isa = isa;
  nb::gil_scoped_release free;
  new (self) PyLoader{o.output, views, std::make_unique<Loader>(beton, o)};
}

nb::object next(PyLoader& self) {
  Loader& loader = open(self);
  for (;;) {
    std::shared_ptr<Batch> batch;
    Loader::Status status;
    {
      nb::gil_scoped_release free;
      status = loader.next(100, batch);  // wake up now and then, so that Ctrl-C is heard
    }
    if (status == Loader::Status::kBatch) return to_python(std::move(batch), self.output, self.views);
    if (status == Loader::Status::kEnd) return nb::none();
    if (status == Loader::Status::kFailed) {
      const Failure f = loader.failure();
      return nb::make_tuple(f.record, f.message);
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

}  // namespace

void register_loader(nb::module_& m) {
  nb::class_<Beton>(m, "Beton", "The checked tables of a .beton file, and the file, open for reading.")
      .def("__init__", [](Beton* self, const std::string& path) { nb::gil_scoped_release free; new (self) Beton(path); }, "path"_a)
      .def("__len__", [](const Beton& self) { return self.records.size(); });
  nb::class_<PyLoader>(m, "Loader", "Threads that fill a ring of batches. See dp4tl_fast.loaders.native.")
      .def("__init__", &construct, "beton"_a, nb::kw_only(), "transform"_a, "scale"_a, "aspect"_a, "crop_ratio"_a, "flip"_a, "seed"_a,
           "size"_a, "dtype"_a, "mul"_a, "add"_a, "views"_a, "threads"_a, "batch_size"_a, "depth"_a, "skip"_a,
           "exact"_a, "isa"_a, "lent"_a)
      .def("start",
           [](PyLoader& self, Numbers records, Numbers bounds, Numbers windows, uint32_t epoch) {
             const auto copy = [](const Numbers& a) { return std::vector<int64_t>(a.data(), a.data() + a.size()); };
             std::vector<int64_t> r = copy(records), b = copy(bounds), w = copy(windows);
             Loader& loader = open(self);
             nb::gil_scoped_release free;
             loader.start(std::move(r), std::move(b), std::move(w), epoch);
           },
           "records"_a, "bounds"_a, "windows"_a, "epoch"_a,
           "Begin an epoch: batch b is records[bounds[b]:bounds[b + 1]]. Records of positions windows[w] to windows[w + 1] are read\n"
           "ahead together; no windows: each record is read when its turn comes.")
      .def("lend", [](PyLoader& self, nb::object memory) { lend(open(self), std::move(memory)); }, "memory"_a,
           "Memory of one more batch of this epoch: uint8 [bytes], the host's. Batches take it in the order of the calls.")
      .def("next", &next,
           "(views, labels, index, failures); None at the end; (record, message) when a record failed. Of a loader with lent=True,\n"
           "the memory that was lent for the batch stands in place of its views.")
      .def("stop", [](PyLoader& self) { nb::gil_scoped_release free; if (self.loader) self.loader->stop(); }, "Give up the epoch.")
      .def("close", [](PyLoader& self) { nb::gil_scoped_release free; self.loader.reset(); }, "End the threads.")
      .def("profile",
           [](PyLoader& self) {
             const Loader::Profile p = open(self).profile();
             nb::dict d;
             d["read"] = p.stages.read, d["decode"] = p.stages.decode, d["resize"] = p.stages.resize;
             d["starve"] = p.starve, d["idle"] = p.idle;
             return d;
           },
           "Seconds of the running or last epoch: read (explicit reads; cached pages are used in place), decode, resize, idle (threads waited for the consumer), summed over threads;\n"
           "starve: the consumer waited for a batch.")
      .def_prop_ro("isa", [](PyLoader& self) { return name_of(open(self).isa()); });
  m.def("sample_crops",
        [](const std::string& transform, std::pair<double, double> scale, std::pair<double, double> aspect, double crop_ratio, bool flip,
           uint64_t seed, Numbers widths, Numbers heights, Numbers records, uint32_t epoch, uint32_t view) {
          CropSpec spec;
          spec.transform = choice<Transform>(transform, {{"random_resized_crop", Transform::kRandomResizedCrop},
                                                         {"center_crop", Transform::kCenterCrop},
                                                         {"resize", Transform::kResize}});
          spec.scale[0] = scale.first, spec.scale[1] = scale.second;
          spec.aspect[0] = aspect.first, spec.aspect[1] = aspect.second;
          spec.crop_ratio = crop_ratio, spec.flip = flip, spec.seed = seed;
          const size_t n = records.size();
          if (widths.size() != n || heights.size() != n) throw nb::value_error("widths, heights and records differ in length");
          auto* boxes = new std::vector<int64_t>(n * 5);
          nb::capsule owner(boxes, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
          for (size_t i = 0; i < n; ++i) {
            const Crop c = sample_crop(spec, static_cast<int>(widths(i)), static_cast<int>(heights(i)), records(i), epoch, view);
            const int64_t row[5] = {c.x, c.y, c.width, c.height, c.flip};
            std::copy(row, row + 5, &(*boxes)[i * 5]);
          }
          return nb::ndarray<nb::numpy, int64_t, nb::ndim<2>>(boxes->data(), {n, 5}, owner);
        },
        "transform"_a, "scale"_a, "aspect"_a, "crop_ratio"_a, "flip"_a, "seed"_a, "widths"_a, "heights"_a, "records"_a, "epoch"_a, "view"_a,
        "x, y, width, height, flip of every sample's view: int64 [n, 5]. loaders/augment.py is the reference.");
}

}  // namespace dp4tl
