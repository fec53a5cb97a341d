"""The DALI graph: stored bytes and boxes in, ready views out. Imports DALI; all that decides is in ``dali.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nvidia.dali.tensors
import nvidia.dali.types
from nvidia.dali import Pipeline, fn, pipeline_def

from dp4tl_fast.loaders.spec import LoaderSpec

# Their members are made at import time, out of a type checker's sight.
types: Any = nvidia.dali.types
tensors: Any = nvidia.dali.tensors

PREFETCH = 2  # batches that DALI works on ahead of the consumer
DTYPES = {
    "uint8": types.UINT8,
    "float16": types.FLOAT16,
    "bfloat16": types.FLOAT,  # DALI has no bfloat16: torch rounds
    "float32": types.FLOAT,
}


def as_batch(views: list[Any]) -> Any:
    """A batch of samples that stay where they are; ``views`` speak DLPack, uint8 ``[size]`` each."""
    return tensors.TensorListCPU.from_dlpack_list(views)


def build(spec: LoaderSpec, records: str, threads: int, device_id: int | None, source: Callable[[], Any]) -> Pipeline:
    """A built pipeline that asks ``source()`` for the next batch until it raises ``StopIteration``.

    ``source`` returns, each a list or array over the batch: stored bytes uint8 ``[size]``; unless all are JPEGs,
    the stored shape (height, width, 3) int32; if they are mixed, raw? bool; and for every view its box (top, left,
    height, width) int32 and the region of that box that is resized, (top, left, bottom, right) float32 in shares of it:
    left and right swapped mirror the image.
    """
    pipeline = pipeline_def(enable_conditionals=True)(_graph)(
        spec,
        records,
        source,
        batch_size=spec.batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=PREFETCH,
        exec_dynamic=True,  # outputs own their memory: later batches do not overwrite them
    )
    pipeline.build()
    return pipeline


def _graph(spec: LoaderSpec, records: str, source: Callable[[], Any]) -> tuple[Any, ...]:
    record_inputs = {"jpeg": [types.UINT8], "raw": [types.UINT8, types.INT32]}
    record_inputs["mixed"] = [*record_inputs["raw"], types.BOOL]
    dtypes = record_inputs[records] + [types.INT32, types.FLOAT] * spec.views
    inputs = fn.external_source(
        source,
        num_outputs=len(dtypes),
        dtype=dtypes,
        ndim=[0 if dtype == types.BOOL else 1 for dtype in dtypes],
        no_copy=True,  # the bytes stay where they are, in the buffer of their batch
    )
    stored, views_at = inputs[: -2 * spec.views], inputs[-2 * spec.views :]
    if spec.views == 1:  # one crop: decode (about) that much
        box, region = views_at
        return (_finish(_read(stored, records, spec.device, box), region, spec),)
    whole = _read(stored, records, spec.device, None)
    views = []
    for v in range(spec.views):
        box, region = views_at[2 * v], views_at[2 * v + 1]
        views.append(_finish(fn.slice(whole, **_at(box)), region, spec))
    return tuple(views)


def _read(inputs: Sequence[Any], records: str, device: str, box: Any) -> Any:
    """Pixels of each record, or only of its box."""
    if records == "jpeg":
        return _decode(inputs[0], device, box)
    if records == "raw":
        return _pixels(inputs[0], inputs[1], device, box)
    stored, shape, raw = inputs
    if raw:  # noqa: SIM108  DALI splits the batch at an if statement, and merges it again
        image = _pixels(stored, shape, device, box)
    else:
        image = _decode(stored, device, box)
    return image


def _decode(stored: Any, device: str, box: Any) -> Any:
    options: dict[str, Any] = {
        "device": "cpu" if device == "cpu" else "mixed",  # mixed: nvJPEG
        "adjust_orientation": False,  # FFCV and PIL do not turn images by their EXIF tag, either
        "jpeg_fancy_upsampling": True,  # nvJPEG as libjpeg-turbo
    }
    if box is None:
        return fn.decoders.image(stored, **options)
    return fn.decoders.image_slice(stored, **options, **_at(box))


def _pixels(stored: Any, shape: Any, device: str, box: Any) -> Any:
    image = fn.reshape(stored, shape=shape, layout="HWC")
    if box is not None:
        image = fn.slice(image, **_at(box))
    return image if device == "cpu" else image.gpu()


def _at(box: Any) -> dict[str, Any]:
    return {"start": box[:2], "shape": box[2:], "axis_names": "HW"}


def _finish(crop: Any, region: Any, spec: LoaderSpec) -> Any:
    """Resize with antialiasing, mirror, normalise. HWC of the dtype."""
    image: Any = fn.resize(
        crop,
        size=[spec.size, spec.size],
        roi_start=region[:2],
        roi_end=region[2:],
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    if spec.dtype == "uint8":
        return image
    return fn.crop_mirror_normalize(
        image,
        dtype=DTYPES[spec.dtype],
        output_layout="HWC",
        mean=[255 * m for m in spec.mean],
        std=[255 * s for s in spec.std],
    )
