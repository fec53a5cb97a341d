"""The loaders that suite ``loaders`` compares, each in a process of its own (``benchmarks.child``).

Options: ``file`` (a .beton), ``folder`` (its images as files), ``threads``, ``images`` per epoch (records are repeated) and
``size``. All deliver random resized crops, mirrored at random, normalised to fp16 (TurboLoader to fp32: it has no fp16 of JPEGs).
"""

from __future__ import annotations

import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 256


def repeated(available: int, images: int) -> np.ndarray:
    return np.resize(np.arange(available), images)


def native(options: dict[str, Any]) -> Callable[[], Iterable]:
    from dp4tl_fast.beton import Beton
    from dp4tl_fast.loaders import LoaderSpec
    from dp4tl_fast.loaders.native import NativeLoader

    spec = LoaderSpec(
        batch_size=BATCH, size=options["size"], transform="random_resized_crop", flip=True, shuffle=True, dtype="float16",
        workers=options["threads"],
    )  # fmt: skip
    beton = Beton(options["file"])
    # The class itself, for open_loader refuses repeated records: here they make an epoch long enough.
    loader = NativeLoader(beton, repeated(beton.num_samples, options["images"]), spec)
    return lambda: loader


def ffcv(options: dict[str, Any]) -> Callable[[], Iterable]:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    mean, std = (np.array(v, np.float32) * 255 for v in (MEAN, STD))
    image = [
        RandomResizedCropRGBImageDecoder((options["size"],) * 2), RandomHorizontalFlip(),
        NormalizeImage(mean, std, np.float16), ToTensor(), ToTorchImage(),
    ]  # fmt: skip
    from dp4tl_fast.beton import Beton

    loader = Loader(
        options["file"], batch_size=BATCH, num_workers=options["threads"], order=OrderOption.RANDOM, os_cache=True,
        drop_last=False, indices=repeated(Beton(options["file"]).num_samples, options["images"]),
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
    return lambda: loader


def dali(options: dict[str, Any]) -> Callable[[], Iterable]:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    paths = image_paths(options)

    @pipeline_def(  # type: ignore[call-overload]  # device_id None, for no GPU, is documented, not declared
        batch_size=BATCH, num_threads=options["threads"], device_id=None, seed=0
    )
    def pipeline() -> Any:
        jpegs: Any
        images: Any
        jpegs, labels = fn.readers.file(files=paths, labels=[0] * len(paths), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(jpegs, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, size=[options["size"]] * 2, antialias=True)
        return fn.crop_mirror_normalize(
            images, dtype=types.DALIDataType.FLOAT16, output_layout="HWC", mirror=fn.random.coin_flip(),
            mean=[255 * m for m in MEAN], std=[255 * s for s in STD],
        ), labels  # fmt: skip

    pipe = pipeline()
    pipe.build()
    iterator = DALIGenericIterator(
        pipe, ["images", "labels"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True
    )
    return lambda: iterator


def augmented(size: int) -> Callable[[Any], Any]:
    """torchvision's way, for the loaders that leave pixels to the user."""
    import torch
    from torchvision.transforms import v2

    return v2.Compose([
        v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.ToImage(),
        v2.ToDtype(torch.float16, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip


def decoded(jpeg: bytes) -> Any:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), ImageReadMode.RGB)


def torchvision(decode: str) -> Callable[[dict[str, Any]], Callable[[], Iterable]]:
    def make(options: dict[str, Any]) -> Callable[[], Iterable]:
        import torch
        from PIL import Image
        from torchvision.io import ImageReadMode, decode_image, read_file

        paths, transform = image_paths(options), augmented(options["size"])

        class Images(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(paths)

            def __getitem__(self, i: int) -> Any:
                if decode == "pil":
                    return transform(Image.open(paths[i]).convert("RGB")), 0
                return transform(decode_image(read_file(paths[i]), ImageReadMode.RGB)), 0

        loader = torch.utils.data.DataLoader(
            Images(), BATCH, shuffle=True, num_workers=options["threads"], persistent_workers=True
        )
        return lambda: loader

    return make


def spdl(options: dict[str, Any]) -> Callable[[], Iterable]:
    import random

    import spdl.io
    import torch
    from spdl.pipeline import PipelineBuilder

    paths, side = image_paths(options), options["size"]
    mean, std = (torch.tensor(v, dtype=torch.float16).view(3, 1, 1) for v in (MEAN, STD))

    def decode(path: str) -> Any:
        share = random.uniform(0.08, 1) ** 0.5  # of each side; FFmpeg crops, scales and mirrors
        crop = f"crop=iw*{share}:ih*{share}:iw*{(1 - share) * random.random()}:ih*{(1 - share) * random.random()}"
        mirror = ",hflip" if random.random() < 0.5 else ""
        filters = f"{crop},scale={side}:{side}{mirror},format=pix_fmts=rgb24"
        return spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=filters)

    decode(paths[0])  # without FFmpeg's libraries it fails here, not silently in its threads

    def batch(frames: list[Any]) -> Any:
        images = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(0, 3, 1, 2)
        return (images.half() / 255 - mean) / std

    def epoch() -> Iterable:
        order = random.sample(paths, len(paths))
        builder = PipelineBuilder().add_source(order).pipe(decode, concurrency=options["threads"]).aggregate(BATCH)
        pipeline = builder.pipe(batch).add_sink(3).build(num_threads=options["threads"])
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def tf_data(options: dict[str, Any]) -> Callable[[], Iterable]:
    """The ImageNet input pipeline of TensorFlow's own ResNet: only the crop is decoded."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    paths, side = image_paths(options), options["size"]
    mean, std = (tf.constant(v) * 255 for v in (MEAN, STD))

    def image(path: Any) -> Any:
        jpeg = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(jpeg), tf.zeros([1, 0, 4]), area_range=(0.08, 1.0), aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        window = tf.concat([begin[:2], size[:2]], axis=0)
        pixels = tf.image.resize(tf.image.decode_and_crop_jpeg(jpeg, window, channels=3), [side, side])
        return tf.cast((tf.image.random_flip_left_right(pixels) - mean) / std, tf.float16)

    threading = tf.data.Options()
    threading.threading.private_threadpool_size = options["threads"]
    threading.deterministic = False
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).map(image, num_parallel_calls=options["threads"])
    dataset = dataset.batch(BATCH).prefetch(2).with_options(threading)
    return dataset.as_numpy_iterator


def turboloader(options: dict[str, Any]) -> Callable[[], Iterable]:
    import os

    # Its pool has a thread per processor of the process, whatever it is told.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options["threads"]])
    import turboloader as turbo

    tar = scratch(options) / "images.tar"
    with tarfile.open(tar, "w") as archive:
        for i, path in enumerate(image_paths(options)):
            archive.add(path, f"{i:06}.jpg")
    return lambda: turbo.DataLoader(
        str(tar), batch_size=BATCH, num_workers=options["threads"], shuffle=True, image_size=options["size"],
        output_format="pytorch", transform=turbo.ImageNetNormalize(), train_aug=True, antialias=True,
    )  # fmt: skip


def litdata(options: dict[str, Any]) -> Callable[[], Iterable]:
    import litdata as lit

    folder, transform = scratch(options), augmented(options["size"])
    samples = list(enumerate(image_paths(options)))
    lit.optimize(fn=_sample, inputs=samples, output_dir=str(folder), chunk_bytes="64MB", num_workers=1)
    images = lit.StreamingDataset(str(folder), shuffle=True, transform=partial(_pixels, transform))
    loader = lit.StreamingDataLoader(images, batch_size=BATCH, num_workers=options["threads"], persistent_workers=True)
    return lambda: loader


# At the top of the module: the processes of litdata and DataLoader import them.


def _sample(numbered: tuple[int, str]) -> dict[str, Any]:
    return {"label": numbered[0], "jpeg": Path(numbered[1]).read_bytes()}


def _pixels(transform: Callable[[Any], Any], sample: dict[str, Any]) -> tuple[Any, int]:
    return transform(decoded(sample["jpeg"])), sample["label"]


def _batch(transform: Callable[[Any], Any], samples: list[dict[str, Any]]) -> Any:
    from torch.utils.data import default_collate

    return default_collate([_pixels(transform, sample) for sample in samples])


def mosaicml_streaming(options: dict[str, Any]) -> Callable[[], Iterable]:
    import streaming
    import torch

    folder, transform = scratch(options), augmented(options["size"])
    with streaming.MDSWriter(out=str(folder), columns={"label": "int", "jpeg": "bytes"}) as writer:
        for sample in map(_sample, enumerate(image_paths(options))):
            writer.write(sample)
    images = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
    loader: Any = torch.utils.data.DataLoader(
        images, BATCH, num_workers=options["threads"], persistent_workers=True, collate_fn=partial(_batch, transform)
    )
    return lambda: loader


def scratch(options: dict[str, Any]) -> Path:
    """A folder beside the files, which goes with them."""
    return Path(tempfile.mkdtemp(dir=Path(options["folder"]).parent))


def image_paths(options: dict[str, Any]) -> list[str]:
    paths = sorted(str(p) for p in Path(options["folder"]).iterdir())
    return [paths[i] for i in repeated(len(paths), options["images"])]


SUBJECTS = {
    "ours": native, "ffcv": ffcv, "dali-cpu": dali, "torchvision-pil": torchvision("pil"),
    "torchvision-io": torchvision("io"), "spdl": spdl, "tf.data": tf_data, "turboloader": turboloader, "litdata": litdata,
    "mosaicml-streaming": mosaicml_streaming,
}  # fmt: skip


def images_of(batch: Any) -> Any:
    """The images of a batch of any of the loaders: a tensor ``[n, 3, size, size]``."""
    import torch

    while not hasattr(batch, "shape"):
        batch = batch["images"] if isinstance(batch, dict) else batch[0]
    images = torch.as_tensor(batch)
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)


def check_images(name: str, images: Any, size: int) -> None:
    """Raise SystemExit unless these are normalised images of that size, and not one and the same."""
    shape, values = tuple(images.shape[1:]), images.float()
    limits = [(0 - m) / s for m, s in zip(MEAN, STD, strict=True)], [(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    low, high = values.amin((0, 2, 3)).tolist(), values.amax((0, 2, 3)).tolist()
    inside = all(lo >= least - 0.05 for lo, least in zip(low, limits[0], strict=True)) and all(
        hi <= most + 0.05 for hi, most in zip(high, limits[1], strict=True)
    )
    varied = len(images) == 1 or float((values[0] - values[1]).abs().max()) > 0
    if shape != (3, size, size) or not inside or not varied or images.element_size() not in (2, 4):
        raise SystemExit(f"{name}: a batch {tuple(images.shape)} of {images.dtype} from {low} to {high} is not what was asked for")


def subject(name: str, options: dict[str, Any]) -> Callable[[int], float]:
    """What runs an epoch of the loader of that name and returns its seconds. A batch of epoch 0, the warm-up, is looked at."""
    epoch = SUBJECTS[name](options)

    def seconds(number: int) -> float:
        start = time.perf_counter()
        loader = epoch()
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(number)
        batches = 0
        for batch in loader:
            if number == batches == 0:
                check_images(name, images_of(batch), options["size"])
            batches += 1
        spent = time.perf_counter() - start
        if batches != -(-options["images"] // BATCH):
            raise SystemExit(f"{name}: {batches} batches of {BATCH} are not {options['images']} images")
        return spent

    return seconds
