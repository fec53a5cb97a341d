"""What lies beside a .beton: one file, tied to it, read when it is needed from where it lay at opening."""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import subset
from dp4tl_fast.beton.sidecars import sidecar
from dp4tl_fast.beton.verify import verify
from dp4tl_fast.common.errors import BetonError
from dp4tl_fast.conversion.run import convert

KINDS = ("classes.json", "convert.json", "audit.csv", "crc32.npy")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three images of the classes ant and bee, converted; one of them had a comment."""
    rng = np.random.default_rng(0)
    for name, comment in (("ant/1", b""), ("ant/2", b"goes"), ("bee/3", b"")):
        path = tmp_path / "tree" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path, comment=comment)
    convert(str(tmp_path / "tree"), str(tmp_path / "data" / "o.beton"), write_mode="raw", seed=1)
    return tmp_path / "data" / "o.beton"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def test_there_is_one_and_any_zip_tool_reads_it(out: Path) -> None:
    assert sorted(p.name for p in out.parent.iterdir()) == ["o.beton", "o.info.zip"]
    contents = members(sidecar(out))
    assert set(contents) == {"beton.json", *KINDS}
    assert json.loads(contents["beton.json"])["bytes"] == out.stat().st_size
    assert [row["name"] for row in json.loads(contents["classes.json"])] == ["ant", "bee"]
    assert contents["audit.csv"].decode().splitlines()[0] == "index,record,source,what"


def test_the_four_files_of_earlier_versions_are_read(out: Path) -> None:
    new = Beton(out)
    checksums, audit, info = new.checksums().tolist(), list(new.sidecar.audit()), new.sidecar.info()
    contents = members(sidecar(out))
    for kind in KINDS:
        sidecar(out, kind).write_bytes(contents[kind])
    sidecar(out).unlink()
    old = Beton(out)
    assert old.class_names == ["ant", "bee"]
    assert (old.checksums().tolist(), list(old.sidecar.audit()), old.sidecar.info()) == (checksums, audit, info)
    assert (len(checksums), len(audit), info["listed"]) == (3, 3, 3)
    assert verify(old)["checksums"] is True
    convert(str(out.parent.parent / "tree"), str(out), write_mode="raw")
    assert sorted(p.name for p in out.parent.iterdir()) == ["o.beton", "o.info.zip"], "stale ones would be read again"


def test_a_file_is_read_from_where_it_was_opened(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out.parent)
    beton = Beton("o.beton")
    monkeypatch.chdir(tmp_path)
    assert beton.path == Path("o.beton"), "messages say what the user wrote"
    assert beton.class_names == ["ant", "bee"]
    assert verify(beton, decode=True) == {"records": 3, "checksums": True, "decoded": True}
    subset(beton, np.arange(3), tmp_path / "copy.beton")
    assert Beton(tmp_path / "copy.beton").class_names == ["ant", "bee"]
    assert len(list(beton.sidecar.audit())) == 3


def test_a_link_leads_to_the_sidecar_of_its_target(out: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.beton"
    link.symlink_to(out)
    assert Beton(link).class_names == ["ant", "bee"]
    sidecar(link, "classes.json").write_text('[{"id": 0, "name": "mine"}]')
    assert Beton(link).class_names == ["mine", "1"], "but what lies beside the link comes first"


def test_splits_that_name_their_classes_otherwise_are_refused(out: Path) -> None:
    beton = Beton(out)
    sidecar(out).rename(out.with_name("aside"))
    cases = (("caf\u00e9", "cafe\u0301", "the same text in another Unicode form"), ("ant", "bee", "calls class 0 'bee', but"))
    for first, second, message in cases:
        named = []
        for name in (first, second):
            sidecar(out, "classes.json").write_text(json.dumps([{"id": 0, "name": name}, {"id": 1, "name": "tea"}]))
            named.append(Beton(out))
        named[0].check_split(named[0])
        with pytest.raises(BetonError, match=message):
            named[0].check_split(named[1])
    assert beton.class_names == ["ant", "bee"], "read when it was opened"


@pytest.mark.parametrize("seed", [2, 3])
def test_the_sidecar_of_another_file_is_refused(out: Path, tmp_path: Path, seed: int) -> None:
    """Though both have the same size, counts and classes: raw images of one size, in another order."""
    other = tmp_path / "other.beton"
    convert(str(tmp_path / "tree"), str(other), write_mode="raw", seed=seed, layout="shuffled")
    assert other.stat().st_size == out.stat().st_size
    assert other.read_bytes() != out.read_bytes()
    shutil.copy(sidecar(other), sidecar(out))
    with pytest.raises(BetonError, match=r"o\.info\.zip: belongs to another file than .*o\.beton"):
        Beton(out)
    sidecar(out).unlink()
    assert Beton(out).class_names == ["0", "1"]


def test_changed_tables_are_noticed_at_opening(out: Path) -> None:
    data = bytearray(out.read_bytes())
    data[24 + 1041 * 3 + 16] ^= 1  # a label
    out.write_bytes(data)
    with pytest.raises(BetonError, match=r"o\.info\.zip: belongs to another file"):
        Beton(out)


def test_checksums_are_not_read_for_class_names(out: Path) -> None:
    contents = members(sidecar(out))
    rewrite(sidecar(out), {**contents, "crc32.npy": b"damaged"})
    beton = Beton(out)
    assert beton.class_names == ["ant", "bee"]
    with pytest.raises(BetonError, match=r"o\.info\.zip: not a table of checksums"):
        verify(beton)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("crc32.npy", b"\x80\x04K\x01.", "not a table of checksums"),  # a pickle
        ("crc32.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<u4', 'fortran_order': False, 'shape': (3000000000000000,), }" + b" " * 34,
         "not a table of checksums"),
        ("classes.json", b'[{"id": 1, "name": "x"}]', "ids are not 0, 1, 2"),
        ("classes.json", b"[1]", "not a class list"),
        ("classes.json", b"\xff", "not a class list"),
    ],
)  # fmt: skip
def test_damaged_members_are_one_clear_error(out: Path, kind: str, data: bytes, message: str) -> None:
    def read_all() -> None:
        verify(Beton(out))

    contents = members(sidecar(out))
    rewrite(sidecar(out), {**contents, kind: data})
    with pytest.raises(BetonError, match=message):
        read_all()
    for name, member in contents.items():
        sidecar(out, name).write_bytes(member)
    sidecar(out, kind).write_bytes(data)
    sidecar(out).unlink()
    with pytest.raises(BetonError, match=message):
        read_all()


@pytest.mark.parametrize("damage", [lambda d: d[:-30], lambda d: b"PK" + bytes(100), lambda d: b""], ids=["cut", "no zip", "empty"])
def test_a_damaged_archive_is_one_clear_error(out: Path, damage: Callable[[bytes], bytes]) -> None:
    sidecar(out).write_bytes(damage(sidecar(out).read_bytes()))
    with pytest.raises(BetonError, match=r"o\.info\.zip: not a class list .*Remove it, or convert again"):
        Beton(out)


def test_checksums_of_another_count_are_refused(out: Path) -> None:
    other = Beton(out)
    subset(other, np.arange(2), out.with_name("two.beton"))
    contents = members(sidecar(out)) | {"crc32.npy": members(sidecar(out.with_name("two.beton")))["crc32.npy"]}
    rewrite(sidecar(out), contents)
    with pytest.raises(BetonError, match=r"holds uint32 \[2\], but uint32 \[3\] is needed"):
        verify(Beton(out))


def test_a_disk_that_fills_up_at_the_end_leaves_the_old_pair(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in out.parent.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", full)
        with pytest.raises(BetonError, match=r"o\.beton: No space left on device"):
            convert(str(tmp_path / "tree"), str(out), write_mode="raw", seed=2)
    assert {p.name: p.read_bytes() for p in out.parent.iterdir() if not p.name.startswith(".")} == before
    assert convert(str(tmp_path / "tree"), str(out), write_mode="raw", seed=2)["resumed"] == 3
    assert Beton(out).class_names == ["ant", "bee"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["o.beton", "o.info.zip"]
