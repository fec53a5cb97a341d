"""``dp4tl-fast convert SRC OUT.beton``: images to a .beton laid out so that a class can be read alone."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.entry_points import wants_entry_points
from dp4tl_fast.beton.layout import check_layout
from dp4tl_fast.common import cli
from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.common.files import check_outputs, through_links
from dp4tl_fast.common.machine import cores
from dp4tl_fast.common.pictures import MAX_PIXELS, quiet
from dp4tl_fast.conversion import ray
from dp4tl_fast.conversion.conversion import check_space, finished
from dp4tl_fast.conversion.images import ImageRule, make_record
from dp4tl_fast.conversion.listing import as_text, converted_text, listed
from dp4tl_fast.conversion.parts import count_of, open_parts
from dp4tl_fast.conversion.plan import Listing, Plan
from dp4tl_fast.conversion.shards import join, parse_shard, shard_path
from dp4tl_fast.sources import Source, SourceOptions


def convert(
    src: str,
    out: str,
    *,
    labels: str = "",
    split: str = "",
    classes_from: str = "",
    class_order: str = "text",
    label_type: str = "auto",
    allow_empty: bool = False,
    image_column: str = "",
    label_column: str = "",
    image_key: str = "",
    label_key: str = "",
    layout: str = "class",
    write_mode: str = "keep",
    max_side: int = 0,
    short_side: int = 0,
    quality: int = 90,
    smart_threshold: int = 0,
    jpeg_share: float = 0.5,
    max_pixels: int = MAX_PIXELS,
    exif_orientation: str = "ignore",
    keep_icc: bool = False,
    entry_points: str = "on",
    seed: int = 0,
    workers: int = 0,
    on_error: str = "fail",
    resume: bool = False,
    shard: str = "",
    on: str = "here",
    ray_address: str = "",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Convert labelled images to a .beton file that FFCV and dp4tl_fast read. The rules: docs/converting.md.

    JPEGs that every loader can read are stored without loss (minus EXIF and comments); all other images are decoded and
    re-encoded. audit.csv in OUT's sidecar lists what is not stored byte for byte, and why. The same input and flags give the same
    bytes for any number of workers. To continue an interrupted run where it stopped, run the same command again.

    Args:
        src: Folder of class folders, or a tar of them; ILSVRC2012_img_train.tar; ILSVRC2012_img_val.tar (with
            --labels); WebDataset tars (``x-{000..099}.tar``); Parquet with an image column; a folder written by
            ``datasets.save_to_disk``; CSV or TSV with columns path and label; ``torchvision:NAME?root=DIR&split=train``; or the
            URL of a folder, of tars or of Parquet files.
        out: .beton file to write. Its sidecar, with the class names, is written beside it: ``x.info.zip`` for ``x.beton``.
        labels: ILSVRC2012_devkit_t12.tar.gz, which holds the labels of ILSVRC2012_img_val.tar.
        split: Split to convert, if SRC holds several (train, val ...).
        classes_from: What the classes are: ``top``: the folders in the root, with all that is below them; ``leaf``: the folders
            that directly hold the images; or, for images without class folders, a table (CSV, TSV, or separated by spaces) with
            file names and classes.
        class_order: Order of the class names, which gives their ids: ``text``; ``natural`` (numbers in names by value); a file
            with one class name per line; or another .beton, for its order.
        label_type: ``id`` (whole numbers), ``text`` (class names), or ``auto``: ids if all labels are numbers.
        allow_empty: Keep classes without images, with an id, instead of stopping with an error.
        image_column: Column of image bytes or paths in Parquet, Arrow, CSV and TSV files, if there are several.
        label_column: Column of labels.
        image_key: File name ending of the images in a WebDataset, if there are several: ``jpg``.
        label_key: File name ending of the labels in a WebDataset: ``cls``; ``json:a.b`` is the value of b in a in the .json file.
        layout: ``class`` stores each class as one byte range, its records in random order; ``shuffled`` mixes all classes.
        write_mode: ``keep`` (store JPEGs as they are, re-encode the rest), ``jpg`` (re-encode every image), ``raw`` (pixels),
            ``smart`` (pixels if they take at most --smart-threshold bytes, else JPEG) or ``proportion`` (JPEG for --jpeg-share of
            the images, pixels for the rest).
        max_side: Shrink images whose longer side exceeds this many pixels; 0 is off.
        short_side: Shrink images whose shorter side exceeds this many pixels; 0 is off.
        quality: JPEG quality of re-encoded images, 1 to 100.
        smart_threshold: Largest size of an image's pixels, in bytes, that ``smart`` stores raw.
        jpeg_share: Fraction of the images that ``proportion`` stores as JPEG, chosen at random; the rest is stored raw.
        max_pixels: Images with more pixels than this count as bad.
        exif_orientation: ``ignore`` or ``apply`` the EXIF orientation, in every format.
        keep_icc: Keep colour profiles in JPEGs instead of dropping them.
        entry_points: ``on`` inserts an index (2.5 % of the bytes) into JPEGs of 128 x 128 pixels and more, so that the native
            loader decodes only what a crop needs; other readers ignore it. ``off`` omits it.
        seed: Random seed for the order of records.
        workers: Threads; 0 uses one per core. With --on ray: threads of each Ray task, which reserves as many CPUs; 0 uses as many
            as the smallest machine has.
        on_error: ``fail`` at the first bad image, or ``skip`` bad images.
        resume: If OUT is complete, do nothing; if an unfinished OUT was made from other input or flags, fail instead of starting
            over.
        shard: ``I/N`` converts part I of N (counted from 0) to OUT.shard-I-of-N.beton, which can be used as it is; ``auto`` takes
            I and N from Slurm or torchrun. ``dp4tl-fast merge OUT`` joins the shards into the file that a single run writes.
        on: ``here`` (this machine) or ``ray``: all machines of a Ray cluster, which must see SRC and OUT under the same paths. The
            parts are kept in ``.OUT.parts`` until they are joined into the file that a single run writes. Parts of lost workers
            are made again.
        ray_address: HOST:PORT of the cluster; by default RAY_ADDRESS, or the cluster on this machine, or else this machine alone.
        dry_run: Print what would be converted (classes, counts, what is left out and why) and write nothing.

    Returns:
        ``samples`` stored, ``classes``, ``bytes`` of the file, ``seconds``, ``listed`` in the source, of which
        ``byte_for_byte``, ``changed`` (see the audit file) and ``skipped``; ``left_out``: files that were passed over, by
        reason; ``resumed``: done by an earlier run. With ``dry_run``: see ``listing.listed``.

    Raises:
        SourceError: The source is missing, empty, or holds a bad image.
        UsageError: A flag has a value that cannot work, or ``out`` cannot be written.
        BetonError: The disk is full.
    """
    rule = ImageRule(
        write_mode=write_mode, max_side=max_side, short_side=short_side, quality=quality,
        smart_threshold=smart_threshold, jpeg_share=jpeg_share, seed=seed, entry_points=wants_entry_points(entry_points),
        max_pixels=max_pixels, exif_orientation=exif_orientation, keep_icc=keep_icc,
    )  # fmt: skip
    options = SourceOptions(
        labels=labels, split=split, classes_from=classes_from, class_order=class_order, label_type=label_type,
        class_list=tuple(Beton(class_order).class_names) if class_order.endswith(".beton") else (),
        allow_empty=allow_empty, image_column=image_column, label_column=label_column, image_key=image_key, label_key=label_key,
    )  # fmt: skip
    check_layout(layout)
    _check_flags(on_error, workers, on, shard, ray_address)
    plan = Plan(src=src, options=options, rule=rule, layout=layout, seed=seed, skip=on_error == "skip")
    started = time.perf_counter()
    part = parse_shard(shard)
    target = through_links(shard_path(Path(out), *part) if part else Path(out))
    check_outputs([("out", target)], [src])
    with closing(plan.open(None if dry_run else target.absolute().parent)) as listing:
        source = listing.source
        if dry_run:
            result = listed(src, source)
            cli.message(as_text(result))
            return result
        summary = finished(target, listing.identity(part)) if resume else None
        resumed = len(listing.order(part))
        if summary is None and on == "ray":
            summary, resumed = _convert_on_ray(listing, target, workers, resume, ray_address)
        elif summary is None:
            check_space(target, _bytes_needed(source, listing.order(part), rule))
            with Progress(resumed) as bar, quiet():
                conversion = listing.conversion(target, part, workers or cores(), resume, bar.advance)
                summary, resumed = conversion.run(), conversion.resumed
    size, seconds = target.stat().st_size, time.perf_counter() - started
    result = {"out": str(target), **summary, "bytes": size, "resumed": resumed, "seconds": seconds}
    cli.message(converted_text(result, source.notes))
    return result


class Progress:
    """The bar: images, images/s, MB/s of source files, time left."""

    def __init__(self, total: int) -> None:
        self._bar = cli.progress((), desc="convert", unit="image", total=total)
        self._started, self._bytes = time.perf_counter(), 0

    def advance(self, samples: int, size: int) -> None:
        self._bytes += size
        rate = self._bytes / 1e6 / max(time.perf_counter() - self._started, 1e-3)
        self._bar.set_postfix_str(f"{rate:.0f} MB/s", refresh=False)
        self._bar.update(samples)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


def _convert_on_ray(
    listing: Listing, out: Path, workers: int, resume: bool, address: str
) -> tuple[dict[str, Any], int]:
    """The summary, and how many images earlier runs had done."""
    order, count = listing.order(), count_of(listing.source.sizes)
    with open_parts(out, listing.identity(), count, resume) as parts:
        needed = _bytes_needed(listing.source, order, listing.plan.rule)
        check_space(out, 2 * needed, parts.bytes())  # the parts, and the file that they are joined to
        with Progress(len(order)) as bar:
            resumed = ray.make_parts(listing, parts, address=address, workers=workers, progress=bar.advance)
        with cli.progress((), desc="merge", unit="image", total=len(order)) as bar:
            summary = join([parts.path(part) for part in range(count)], out, bar.update)
        parts.remove()
    return {key: value for key, value in summary.items() if key != "shards"}, resumed


def _check_flags(on_error: str, workers: int, on: str, shard: str, ray_address: str) -> None:
    require_one_of("on_error", on_error, ("fail", "skip"))
    require(workers >= 0, "workers", workers, "0 (one per core) or more")
    require_one_of("on", on, ("here", "ray"))
    if on == "ray":
        ray.library()
        require(not shard, "shard", shard, "left out with `on=ray`, which makes all parts")
    else:
        require(not ray_address, "ray_address", ray_address, "given with `on=ray`")


def _bytes_needed(source: Source, order: np.ndarray, rule: ImageRule) -> int:
    """What the output will take, in bytes: the source's own size, or an estimate from a few converted samples."""
    total = int(source.sizes.sum() * (1.05 if rule.entry_points else 1)) + 100 * len(order)
    if rule.write_mode == "keep" and not (rule.max_side or rule.short_side):
        return total
    before = after = 0
    for i in {(2 * k + 1) * len(source) // 32 for k in range(16)}:
        with suppress(SourceError, OSError):  # a bad image is reported when its turn comes
            before, after = before + int(source.sizes[i]), after + len(make_record(source.read(i), rule, i).payload)
    return int(total * after / before) if before else total
