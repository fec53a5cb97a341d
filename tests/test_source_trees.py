"""Folders and tars of images: what is an image, what is a class, what is left out; every case with its right value."""

from __future__ import annotations

import errno
import io
import os
import socket
import tarfile
import unicodedata
from pathlib import Path

import pytest
from source_cases import image, make_tar, names_of, opened, put, samples

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError, Dp4tlError, SourceError, UsageError
from dp4tl_fast.conversion.run import convert

JPEG = image()
ENDINGS = ("x.jfif", "x.jpe", "x.avif", "x.JPG", "noending", "x.jpg.1", "x.txt.old")


def both(tmp_path: Path, files: dict[str | bytes, bytes | None], **options: tarfile.TarInfo) -> list[Path]:
    """The same tree as a folder and as a tar of it (``tar -C tree .``)."""
    put(tmp_path / "tree", files)
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        tar.add(tmp_path / "tree", ".")
    return [tmp_path / "tree", tmp_path / "tree.tar"]


# -- what is an image -------------------------------------------------------------------------------------------------


def test_endings_decide_nothing(tmp_path: Path) -> None:
    """A class of odd endings alone is not lost, and shifts no ids."""
    files: dict[str | bytes, bytes | None] = {f"b/{name}": image(k) for k, name in enumerate(ENDINGS)}
    for src in both(tmp_path, {**files, "a/1.jpg": JPEG, "c/1.jfif": JPEG}):
        assert {k: sorted(v) for k, v in names_of(src).items()} == {
            "a": ["1.jpg"],
            "b": sorted(ENDINGS),
            "c": ["1.jfif"],
        }


LITTER = {
    "a/Thumbs.db": "a system file", "a/desktop.ini": "a system file", "a/.DS_Store": "a hidden file",
    "b/md5sums": "a list of checksums", "b/1.jpg.md5": "an annotation or checksum beside the images",
    "a/a_boxes.txt": "an annotation or checksum beside the images", "a/1.json": "an annotation or checksum beside the images",
    "b/1.xml": "an annotation or checksum beside the images", "README.md": "no image, and in no class folder",
    "classes.txt": "no image, and in no class folder",
}  # fmt: skip


def test_well_known_litter_is_left_out_and_counted(tmp_path: Path) -> None:
    files: dict[str | bytes, bytes | None] = dict.fromkeys(LITTER, b"not an image")
    files |= {"a/1.jpg": JPEG, "b/1.jpg": JPEG, "__MACOSX/a/._1.jpg": b"\0\5\x16\7", ".ipynb_checkpoints/1.jpg": JPEG}
    files |= {"a/.ipynb_checkpoints/1.jpg": JPEG}
    for src in both(tmp_path, files):
        assert names_of(src) == {"a": ["1.jpg"], "b": ["1.jpg"]}
        source = opened(src)
        found = {name.rpartition("tree.tar: ")[2]: why for name, why in source.left_out}
        assert {name: why for name, why in found.items() if name in LITTER} == LITTER
        assert len(found) == len(LITTER) + 3
        source.close()
        out = convert(str(src), str(tmp_path / "o.beton"))
        assert out["left_out"]["a system file"] == 2
        rows = [
            row["source"] for row in Beton(tmp_path / "o.beton").sidecar.audit() if row["what"].startswith("left out: ")
        ]
        assert len(rows) == len(LITTER) + 3


def test_an_image_is_no_litter_whatever_it_is_called(tmp_path: Path) -> None:
    for src in both(tmp_path, {"a/1.json": JPEG, "a/Thumbs.db": JPEG, "b/1.jpg": JPEG}):
        assert names_of(src) == {"a": ["1.json", "Thumbs.db"], "b": ["1.jpg"]}


def test_anything_else_is_an_error_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for src in both(tmp_path, {"a/1.jpg": JPEG, "a/labels.txt": b"not an image", "b/1.jpg": JPEG}):
        with pytest.raises(SourceError, match=r"a/labels\.txt: it is a text file"):
            convert(str(src), str(tmp_path / "o.beton"))
        result = convert(str(src), str(tmp_path / "o.beton"), on_error="skip")
        assert (result["samples"], result["skipped"]) == (2, 1)
        assert (
            "2 images in 2 classes; 1 skipped; the audit in its sidecar lists them"
            in capsys.readouterr().err.splitlines()[-1]
        )


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("name", ["a/it", "a/it.jpg", "a/it.json"])
def test_what_is_no_file_is_refused_and_never_opened(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "t", {"a/1.jpg": JPEG, "b/1.jpg": JPEG})
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    if kind == "pipe":
        os.mkfifo(f"t/{name}")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"t/{name}")
        server.close()
    for src in ("t", f"file://{tmp_path}/t"):
        with pytest.raises(SourceError, match=f"t/{name}: is a {kind}, not a file"):
            opened(src)


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.csv", "x.arrow"])
def test_a_pipe_in_place_of_the_source_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match="is a pipe, not a file"):
        opened(tmp_path / name)


def test_urls_of_files_are_files(tmp_path: Path) -> None:
    put(tmp_path / "a b", {"a/1.jpg": JPEG, "b/1.jpg": JPEG})
    assert names_of(f"file://{tmp_path}/a%20b") == {"a": ["1.jpg"], "b": ["1.jpg"]}
    make_tar(tmp_path / "x.tar", [("t/a/1.jpg", JPEG), ("t/b/1.jpg", JPEG), ("u/c/1.jpg", JPEG)])
    assert names_of(f"file://{tmp_path}/x.tar#t") == {"a": ["1.jpg"], "b": ["1.jpg"]}


def test_a_pipe_behind_a_table_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.jpg")
    (tmp_path / "x.csv").write_text("path,label\n1.jpg,0\n")
    with pytest.raises(SourceError, match=r"x\.csv: line 2: .*1\.jpg: is a pipe, not a file"):
        opened(tmp_path / "x.csv")


def test_a_pipe_in_place_of_an_answer_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "t", {"a/1.jpg": JPEG, "b/1.jpg": JPEG})
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.beton")
    for option in ("labels", "classes_from", "class_order"):
        with pytest.raises(SourceError, match="pipe: is a pipe, not a file"):
            opened(tmp_path / "t", **{option: str(tmp_path / "pipe")})
    with pytest.raises(BetonError, match=r"pipe\.beton: cannot be read as a \.beton file"):
        convert(str(tmp_path / "t"), str(tmp_path / "o.beton"), class_order=str(tmp_path / "pipe.beton"))


def test_a_file_that_may_not_be_read_is_one_plain_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel refuses it: the tests may run as root, whom it lets in everywhere."""
    put(tmp_path / "t", {"a/1.jpg": JPEG, "a/2.jpg": image(2)})
    real = os.open

    def refused(path: str | bytes, *args: object, **kwargs: object) -> int:
        if os.fsencode(path).endswith(b"a/2.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(SourceError, match=r"a/2\.jpg: Permission denied\. Repair or remove it, or give `on_error=skip`$"):
        convert(str(tmp_path / "t"), str(tmp_path / "o.beton"))


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["./a/1.jpg", "/a/1.jpg", "a//1.jpg", "b/../a/1.jpg", "../a/1.jpg", "a/./1.jpg", "a/1.jpg"]
)
def test_member_names_are_normalised(tmp_path: Path, name: str) -> None:
    make_tar(tmp_path / "x.tar", [(name, JPEG), ("b/2.jpg", JPEG)])
    assert names_of(tmp_path / "x.tar") == {"a": ["1.jpg"], "b": ["2.jpg"]}


def test_backslashes_of_windows_are_slashes_where_there_are_no_others(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", [("t\\a\\1.jpg", JPEG), ("t\\b\\2.jpg", JPEG)])
    assert names_of(tmp_path / "x.tar") == {"a": ["1.jpg"], "b": ["2.jpg"]}
    make_tar(tmp_path / "y.tar", [("a\\b/1.jpg", JPEG), ("b/2.jpg", JPEG)])
    assert names_of(tmp_path / "y.tar") == {"a\\b": ["1.jpg"], "b": ["2.jpg"]}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", [b"caf\xe9", "café".encode(), "漢字".encode(), b"new\nline", b"x" * 90])
def test_names_of_any_bytes_are_classes(tmp_path: Path, tar_format: int, name: bytes) -> None:
    put(tmp_path / "t", {name + b"/1.jpg": JPEG, "a/1.jpg": JPEG})
    with tarfile.open(tmp_path / "t.tar", "w", format=tar_format, encoding="utf-8", errors="surrogateescape") as tar:
        tar.add(tmp_path / "t", ".")
    for src in ("t", "t.tar"):
        convert(str(tmp_path / src), str(tmp_path / "o.beton"))
        assert Beton(tmp_path / "o.beton").class_names == ["a", os.fsdecode(name)]


def test_a_name_that_comes_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    """As ``tar -r`` updates a tar."""
    make_tar(tmp_path / "x.tar", [("./a/1.jpg", image(1)), ("b/1.jpg", image(2)), ("a/1.jpg", image(3))])
    assert samples(tmp_path / "x.tar") == [("a", image(3)), ("b", image(2))]
    source = opened(tmp_path / "x.tar")
    assert source.left_out == [(f"{tmp_path}/x.tar: a/1.jpg", "replaced by a later member of the same name")]
    source.close()


def inner(*names: str) -> bytes:
    out = io.BytesIO()
    make_tar(Path("-"), [(name, image(k)) for k, name in enumerate(names)], fileobj=out)
    return out.getvalue()


def test_a_class_in_two_tars_of_tars_is_one_class(tmp_path: Path) -> None:
    make_tar(tmp_path / "1.tar", [("n01.tar", inner("1.jpg", "2.jpg")), ("n02.tar", inner("3.jpg"))])
    make_tar(tmp_path / "2.tar", [("README", b"notes"), ("n01.tar", inner("4.jpg")), ("n03.tar", inner("5.jpg"))])
    assert names_of(tmp_path / "*.tar") == {"n01": ["1.jpg", "2.jpg", "4.jpg"], "n02": ["3.jpg"], "n03": ["5.jpg"]}


def test_tars_that_are_splits_in_a_tar(tmp_path: Path) -> None:
    """With class folders, or one folder around them, in each."""
    for around in ("", "data/"):
        parts = [(f"{s}.tar", inner(f"{around}a/{s}1.jpg", f"{around}b/{s}2.jpg")) for s in ("train", "val")]
        src = make_tar(tmp_path / "x.tar", parts)
        with pytest.raises(SourceError, match="holds the splits train, val"):
            opened(src)
        assert names_of(src, split="val") == {"a": ["val1.jpg"], "b": ["val2.jpg"]}
    src = make_tar(tmp_path / "y.tar", [(f"{n}.tar", inner(f"{n}/1.jpg", f"{n}/2.jpg")) for n in ("n01", "n02")])
    assert names_of(src) == {"n01": ["1.jpg", "2.jpg"], "n02": ["1.jpg", "2.jpg"]}
    src = make_tar(tmp_path / "z.tar", [(f"{n}.tar", inner("c/1.jpg", "d/2.jpg")) for n in ("n01", "n02")])
    with pytest.raises(SourceError, match="images at several depths, as in n01/c"):
        opened(src)
    assert {k: len(v) for k, v in names_of(src, classes_from="top").items()} == {"n01": 2, "n02": 2}


def test_an_empty_tar_in_a_tar_is_an_empty_class(tmp_path: Path) -> None:
    for empty in (b"", inner()):
        src = make_tar(tmp_path / "x.tar", [("n01.tar", inner("1.jpg")), ("n02.tar", empty), ("n03.tar", inner("3.jpg"))])
        with pytest.raises(SourceError, match="class folder 'n02' has no images"):
            opened(src)
        assert names_of(src, allow_empty=True) == {"n01": ["1.jpg"], "n02": [], "n03": ["3.jpg"]}
    src = make_tar(tmp_path / "x.tar", [("n01.tar", inner("1.jpg")), ("n02.tar", bytes(30_000))])
    with pytest.raises(SourceError, match=r"n02\.tar is zeros: an incomplete download"):
        opened(src, allow_empty=True)


def test_a_folder_of_tars_of_a_class_each_is_asked_about(tmp_path: Path) -> None:
    """ILSVRC2012_img_train.tar, unpacked once."""
    put(tmp_path / "t", {"README": b"x"})
    for name in ("n02", "n01"):
        make_tar(tmp_path / f"t/{name}.tar", [("1.jpg", image(1)), ("Thumbs.db", b"x"), ("2.jpg", image(2))])
    for src in (tmp_path / "t", tmp_path / "t/*.tar", tmp_path / "t/n0{1,2}.tar"):
        with pytest.raises(SourceError, match=r"hold images in no folder\. If each tar is a class, give `classes_from=leaf`"):
            opened(src)
        for mode in ("leaf", "top"):
            assert samples(src, classes_from=mode) == [(n, image(k)) for n in ("n01", "n02") for k in (1, 2)]
    with pytest.raises(SourceError, match=r"1\.jpg is in no class folder"):
        opened(tmp_path / "t/n01.tar")


def test_splits_of_tars_of_tars_are_asked_about(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", [("train/n01.tar", inner("1.jpg")), ("val/n01.tar", inner("2.jpg"))])
    with pytest.raises(SourceError, match="holds the splits train, val"):
        opened(tmp_path / "x.tar")
    assert names_of(tmp_path / "x.tar", split="val") == {"n01": ["2.jpg"]}


# -- classes ----------------------------------------------------------------------------------------------------------


def test_empty_classes_are_refused_or_kept_with_an_id(tmp_path: Path) -> None:
    for src in both(tmp_path, {"a/1.jpg": JPEG, "b": None, "b2/Thumbs.db": b"litter", "c/1.jpg": JPEG}):
        with pytest.raises(
            SourceError, match=r"class folder 'b' has no images\. Fill it or remove it, or give `allow_empty`"
        ):
            opened(src)
        assert names_of(src, allow_empty=True) == {"a": ["1.jpg"], "b": [], "b2": [], "c": ["1.jpg"]}
        convert(str(src), str(tmp_path / "o.beton"), allow_empty=True)
        beton = Beton(tmp_path / "o.beton")
        assert (beton.class_names, beton.class_counts.tolist()) == (["a", "b", "b2", "c"], [1, 0, 0, 1])


def test_a_class_of_litter_alone_is_not_dropped(tmp_path: Path) -> None:
    """Also in a tar that lists no folders, as programs write it."""
    files = {"a/1.jpg": JPEG, "b/Thumbs.db": b"x", "c/.gitkeep": b"", "d/1.json": b"{}", "__MACOSX/a/._1": b"", "a/.git/x": b"x"}
    put(tmp_path / "t", files)  # type: ignore[arg-type]
    for src in (tmp_path / "t", make_tar(tmp_path / "t.tar", files.items())):
        with pytest.raises(SourceError, match=r"class folder '[bcd]' has no images"):
            opened(src)
        assert names_of(src, allow_empty=True) == {"a": ["1.jpg"], "b": [], "c": [], "d": []}


def test_dangling_links_are_never_dropped(tmp_path: Path) -> None:
    put(tmp_path / "t", {"a/1.jpg": JPEG, "b/1.jpg": JPEG})
    for name in ("c", "c.jpg", "a/2.jpg", "a/2.json"):
        (tmp_path / "t" / name).symlink_to("gone")
        with pytest.raises(SourceError, match=f"t/{name}: a broken link"):
            opened(tmp_path / "t")
        (tmp_path / "t" / name).unlink()


def test_class_order(tmp_path: Path) -> None:
    for src in both(tmp_path, {f"{name}/1.jpg": JPEG for name in ("10", "2", "b10", "B9", "1")}):
        assert list(names_of(src)) == ["1", "10", "2", "B9", "b10"]
        assert list(names_of(src, class_order="natural")) == ["1", "2", "10", "B9", "b10"]
        order = tmp_path / "order.txt"
        order.write_bytes(b"\xef\xbb\xbf2\r\nb10\r\n1\r\n10\r\nB9\r\n")
        assert list(names_of(src, class_order=str(order))) == ["2", "b10", "1", "10", "B9"]
        convert(str(src), str(tmp_path / "o.beton"), class_order=str(order))
        convert(str(src), str(tmp_path / "p.beton"), class_order=str(tmp_path / "o.beton"))
        assert Beton(tmp_path / "p.beton").class_names == ["2", "b10", "1", "10", "B9"], "as another file has it"
        order.write_text("2\nb10\n1\n10\n")
        with pytest.raises(SourceError, match=r"order\.txt: has no class 'B9'"):
            opened(src, class_order=str(order))
        order.write_text("2\nb10\n1\n10\nB9\nextra\n")
        with pytest.raises(SourceError, match=r"order\.txt: has the class 'extra', but .* has no image of it"):
            opened(src, class_order=str(order))
        assert list(names_of(src, class_order=str(order), allow_empty=True))[-1] == "extra"
        order.write_text("2\n2\n")
        with pytest.raises(UsageError, match="names '2' twice"):
            opened(src, class_order=str(order))
    with pytest.raises(UsageError, match="`class_order=nowhere`: cannot be read: No such file"):
        opened(tmp_path / "tree", class_order="nowhere")


def test_names_with_blanks_in_a_file_that_gives_the_order(tmp_path: Path) -> None:
    put(tmp_path / "t", {f"{name}/1.jpg": JPEG for name in (" sp", "cat", "CAT ", "a\x85b", "c\u2028d")})
    order = tmp_path / "order.txt"
    order.write_bytes("CAT \r\ncat  \r\n sp\r\nc\u2028d\r\na\x85b\r\n".encode())
    assert list(names_of(tmp_path / "t", class_order=str(order))) == ["CAT ", "cat", " sp", "c\u2028d", "a\x85b"]
    order.write_text("CAT\ncat\n")
    with pytest.raises(SourceError, match=r"order\.txt: has no class ' sp', but .*/t does \(4 are missing\)"):
        opened(tmp_path / "t", class_order=str(order))


def test_classes_that_read_the_same_are_named(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    for src in both(tmp_path, {f"{name}/1.jpg": JPEG for name in forms}):
        with pytest.raises(
            SourceError, match=r"the classes 'cafe\\u0301' and 'caf\\xe9' read the same: .* two Unicode forms. Rename"
        ):
            opened(src)
    put(tmp_path / "cases", {f"{name}/1.jpg": JPEG for name in ("Cat", "cat", "CAT ")})
    assert list(names_of(tmp_path / "cases")) == ["CAT ", "Cat", "cat"]


# -- splits and hierarchies -------------------------------------------------------------------------------------------


def test_splits_are_asked_about_and_never_merged(tmp_path: Path) -> None:
    files: dict[str | bytes, bytes | None] = {f"{s}/{c}/{s}.jpg": JPEG for s in ("train", "val", "test") for c in "ab"}
    for src in both(tmp_path, {**files, "README.md": b"x"}):
        with pytest.raises(SourceError, match=r"holds the splits test, train, val\. Choose one with `split=test`"):
            opened(src)
        assert names_of(src, split="train") == {"a": ["train.jpg"], "b": ["train.jpg"]}
        with pytest.raises(SourceError, match=r"has no split 'dev'\. It holds test, train, val"):
            opened(src, split="dev")
    for src in both(tmp_path / "more", {**files, "Annotations/a/1.xml": b"<x/>"}):
        with pytest.raises(SourceError, match="holds the splits test, train, val"):
            opened(src)


def test_classes_called_like_splits_stay_classes(tmp_path: Path) -> None:
    for src in both(tmp_path, {f"{name}/1.jpg": JPEG for name in ("bus", "train", "test")}):
        assert list(names_of(src)) == ["bus", "test", "train"]
    for src in both(tmp_path / "2", {f"{name}/1.jpg": JPEG for name in ("train", "test")}):
        with pytest.raises(SourceError, match="holds the splits test, train"):
            opened(src)
        assert list(names_of(src, classes_from="top")) == ["test", "train"]


def test_folders_around_everything_are_passed_over(tmp_path: Path) -> None:
    for src in both(tmp_path, {"data/train/a/1.jpg": JPEG, "data/train/b/2.jpg": JPEG, "data/README": b"x"}):
        assert names_of(src) == {"a": ["1.jpg"], "b": ["2.jpg"]}
        source = opened(src)
        assert source.notes == ["the root is data, the only folder", "the root is data/train, the only folder"]
        source.close()


def test_tiny_imagenet_as_downloaded(tmp_path: Path) -> None:
    wnids = ("n01443537", "n01629819")
    files: dict[str | bytes, bytes | None] = {
        "wnids.txt": b"n01443537\nn01629819\n",
        "words.txt": b"n01443537\tgoldfish\n",
    }
    for wnid in wnids:
        files |= {f"train/{wnid}/images/{wnid}_0.JPEG": JPEG, f"train/{wnid}/{wnid}_boxes.txt": b"0\t0\t1\t1\n"}
    files |= {f"val/images/val_{k}.JPEG": image(k) for k in range(3)}
    files["val/val_annotations.txt"] = b"".join(
        b"val_%d.JPEG\t%s\t0\t0\t1\t1\n" % (k, wnids[k % 2].encode()) for k in range(3)
    )
    files["test/images/test_0.JPEG"] = JPEG
    for src in both(tmp_path, files):
        with pytest.raises(SourceError, match="holds the splits test, train, val"):
            opened(src)
        assert names_of(src, split="train") == {w: [f"{w}_0.JPEG"] for w in wnids}
        table = str(tmp_path / "tree/val/val_annotations.txt")
        assert names_of(src, split="val", classes_from=table) == {
            "n01443537": ["val_0.JPEG", "val_2.JPEG"], "n01629819": ["val_1.JPEG"]
        }  # fmt: skip
        with pytest.raises(SourceError, match=r"val_annotations\.txt: does not name test_0\.JPEG|images/test_0"):
            opened(src, split="test", classes_from=table)


def test_class_folders_further_down_are_asked_about(tmp_path: Path) -> None:
    """As Places365 and iNaturalist have them."""
    paths = ("a/airfield", "a/apartment_building/outdoor", "b/bar", "b/church/outdoor")
    for src in both(tmp_path, {f"{path}/1.jpg": JPEG for path in paths}):
        with pytest.raises(
            SourceError, match=r"`classes_from=top` \(a, b\) or `classes_from=leaf` \(a/airfield, a/apartment_building/"
        ):
            opened(src)
        assert {k: len(v) for k, v in names_of(src, classes_from="top").items()} == {"a": 2, "b": 2}
        assert list(names_of(src, classes_from="leaf")) == list(paths), "their names alone would merge two classes"
    for src in both(tmp_path / "2", {f"{path}/1.jpg": JPEG for path in paths[:3]}):
        assert list(names_of(src, classes_from="leaf")) == ["airfield", "bar", "outdoor"]
    for src in both(tmp_path / "3", {"a/1.jpg": JPEG, "a/more/2.jpg": JPEG, "b/1.jpg": JPEG}):
        with pytest.raises(SourceError, match="images at several depths, as in a/more"):
            opened(src)


def test_loose_images_at_the_root_are_named(tmp_path: Path) -> None:
    for src in both(tmp_path, {"a/1.jpg": JPEG, "b/1.jpg": JPEG, "loose.jpg": JPEG}):
        with pytest.raises(SourceError, match=r"loose\.jpg is in no class folder"):
            opened(src)


def test_flat_images_with_a_table_of_classes(tmp_path: Path) -> None:
    for k, text in enumerate(
        ("file,class\n1.jpg,cat\n2.jpg,dog\n", "1.jpg cat\n2.jpg dog\n", "1.jpg;cat\n2.jpg;dog\n")
    ):
        table = tmp_path / f"{k}.csv"
        table.write_text(text)
        for src in both(tmp_path / str(k), {"1.jpg": image(1), "2.jpg": image(2), "notes.txt": b"not an image"}):
            assert samples(src, classes_from=str(table)) == [("cat", image(1)), ("dog", image(2))]
    table.write_text("1.jpg,cat\n")
    with pytest.raises(SourceError, match=r"does not name 2\.jpg, an image of"):
        opened(src, classes_from=str(table))
    table.write_text("1.jpg,cat\n2.jpg,\n")
    with pytest.raises(SourceError, match=r"line 2 gives 2\.jpg no class"):
        opened(src, classes_from=str(table))
    table.write_text("1.jpg,cat\n2.jpg,dog\n1.jpg,dog\n")
    with pytest.raises(SourceError, match=r"line 3 gives 1\.jpg a second label, 'dog'"):
        opened(src, classes_from=str(table))


def test_a_table_names_one_image_each(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("1.jpg,cat\n2.jpg,dog\n9.jpg,dog\n")
    for src in both(tmp_path, {"x/1.jpg": image(1), "y/2.jpg": image(2)}):
        source = opened(src, classes_from=str(table))
        assert source.notes[0] == f"1 of 3 files named in {table} are missing"
        source.close()
    for src in both(tmp_path / "2", {"x/1.jpg": image(1), "y/1.jpg": image(2), "y/2.jpg": image(3)}):
        with pytest.raises(SourceError, match=r"names 1\.jpg, but .* has x/1\.jpg and y/1\.jpg\. Name their folders"):
            opened(src, classes_from=str(table))
        table.write_text("x/1.jpg,cat\ny/1.jpg,dog\n2.jpg,dog\n")
        assert samples(src, classes_from=str(table)) == [("cat", image(1)), ("dog", image(2)), ("dog", image(3))]
        table.write_text("1.jpg,cat\n2.jpg,dog\n9.jpg,dog\n")


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for src in both(tmp_path / "1", {"a/1.jpg": JPEG, "b/1.jpg": JPEG}):
        for option in ("image_column", "label_column"):
            with pytest.raises(UsageError, match=f"`{option}=x`: does not apply to"):
                opened(src, **{option: "x"})
        with pytest.raises(UsageError, match=r"`label_type=id`: does not apply to .* `class_order=natural` puts 2 before 10"):
            opened(src, label_type="id")
        with pytest.raises(UsageError, match="`classes_from=top`: does not apply to"):
            opened(src, classes_from="top", labels="devkit")
    src = make_tar(tmp_path / "w.tar", [("1.jpg", JPEG), ("1.cls", b"1")])
    for option in ("image_column", "label_column", "split"):
        with pytest.raises(UsageError, match=f"`{option}=x`: does not apply to"):
            opened(src, **{option: "x"})
    put(tmp_path / "t", {"a/1.jpg": JPEG, "b/1.jpg": JPEG})
    with pytest.raises(UsageError, match="`image_key=jpg`: does not apply to"):
        opened(tmp_path / "t", image_key="jpg")
    with pytest.raises(UsageError, match="`src` is empty"):
        opened("")
    with pytest.raises(Dp4tlError, match="nowhere: no such file"):
        opened(tmp_path / "t", labels="nowhere")
