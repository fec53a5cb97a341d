"""Backend ``torchvision``: the slow oracle. Each image by itself: PIL decodes, torchvision's functional v2 transforms
crop, resize (antialiased bilinear) and mirror. Every other backend is compared with this one."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import RecordError
from dp4tl_fast.loaders.augment import parameters
from dp4tl_fast.loaders.base import BaseLoader, Epochs
from dp4tl_fast.loaders.capabilities import Capabilities
from dp4tl_fast.loaders.contract import Batch, IndexedBatch
from dp4tl_fast.loaders.readahead import StoredRecords
from dp4tl_fast.loaders.spec import LoaderSpec

if TYPE_CHECKING:
    import torch


class TorchvisionLoader(BaseLoader):
    name = "torchvision"
    capabilities = Capabilities(
        summary="plain reference: PIL and torchvision, one image at a time, no threads",
        exact=True,
        requires=("torch", "torchvision", "PIL"),
    )

    def __init__(self, beton: Beton, records: np.ndarray | None, spec: LoaderSpec) -> None:
        super().__init__(beton, records, spec)
        self._stored = StoredRecords(beton)

    def _load(self, batches: list[np.ndarray], epochs: list[Epochs]) -> Generator[Batch | IndexedBatch, None, None]:
        import torch

        with self._arriving(batches) as arriving:
            for records, of in zip(arriving.each(self._stored.fetched(batches)), epochs, strict=True):
                decoded = self._decode(records)
                good = np.isin(records, list(decoded))
                kept, shown = records[good], np.broadcast_to(of, records.shape)[good]
                views = tuple(self._view(decoded, kept, shown, view) for view in range(self.now.spec.views))
                yield self._batch(tuple(v.to(memory_format=torch.channels_last) for v in views), kept)

    def _decode(self, records: np.ndarray) -> dict[int, np.ndarray]:
        """Pixels by record, those under ``on_error="skip"`` left out."""
        pixels: dict[int, np.ndarray] = {}
        for record in dict.fromkeys(records.tolist()):
            try:
                pixels[record] = self._stored.pixels(record)
            except RecordError as error:
                self._skip(record, error)
        return pixels

    def _view(self, decoded: dict[int, np.ndarray], records: np.ndarray, epochs: np.ndarray, view: int) -> torch.Tensor:
        """``[batch, 3, size, size]`` of the spec's dtype."""
        import torch
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as tv

        spec, rows = self.now.spec, self._stored.rows[records]
        boxes, mirror = parameters(spec, epochs, records, rows["height"], rows["width"], view)
        images = torch.empty((len(records), 3, spec.size, spec.size), dtype=torch.uint8)
        for i, record in enumerate(records.tolist()):
            image = torch.from_numpy(np.array(decoded[record])).permute(2, 0, 1)  # a copy: the mapping is read-only
            size = [spec.size, spec.size]
            image = tv.resized_crop(image, *boxes[i].tolist(), size, InterpolationMode.BILINEAR, antialias=True)
            images[i] = tv.horizontal_flip(image) if mirror[i] else image
        if spec.dtype == "uint8":
            return images
        scaled = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), list(spec.mean), list(spec.std))
        return scaled.to(getattr(torch, spec.dtype))

    def _release(self) -> None:
        self._stored.close()
