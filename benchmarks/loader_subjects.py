"""The loaders that suite ``loaders`` compares, each in a process of its own (``benchmarks.child``).

Options: ``file`` (a .beton), ``folder`` (its images as files), ``threads``, ``images`` per epoch (records are repeated) and
``size``. All deliver random resized crops, mirrored at random, normalised to fp16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
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


def torchvision(decode: str) -> Callable[[dict[str, Any]], Callable[[], Iterable]]:
    def make(options: dict[str, Any]) -> Callable[[], Iterable]:
        import torch
        from PIL import Image
        from torchvision.io import ImageReadMode, decode_image, read_file
        from torchvision.transforms import v2

        paths = image_paths(options)
        transform = v2.Compose([
            v2.RandomResizedCrop(options["size"], antialias=True), v2.RandomHorizontalFlip(), v2.ToImage(),
            v2.ToDtype(torch.float16, scale=True), v2.Normalize(MEAN, STD),
        ])  # fmt: skip

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


def image_paths(options: dict[str, Any]) -> list[str]:
    paths = sorted(str(p) for p in Path(options["folder"]).iterdir())
    return [paths[i] for i in repeated(len(paths), options["images"])]


SUBJECTS = {
    "ours": native, "ffcv": ffcv, "dali-cpu": dali, "torchvision-pil": torchvision("pil"),
    "torchvision-io": torchvision("io"), "spdl": spdl,
}  # fmt: skip


def subject(name: str, options: dict[str, Any]) -> Callable[[int], float]:
    """What runs an epoch of the loader of that name and returns its seconds."""
    epoch = SUBJECTS[name](options)

    def seconds(number: int) -> float:
        start = time.perf_counter()
        loader = epoch()
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(number)
        batches = sum(1 for _ in loader)
        spent = time.perf_counter() - start
        if batches != -(-options["images"] // BATCH):
            raise SystemExit(f"{name}: {batches} batches of {BATCH} are not {options['images']} images")
        return spent

    return seconds
