"""Labels that are odd in one sample: by value, missing, or of another kind, alike in CSV, Parquet and WebDataset."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import image, labels_of, make_tar, opened, put, samples

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.conversion.run import convert

IMAGES = [image(k * 30) for k in range(4)]


def sources(folder: Path, labels: list[str]) -> list[Path]:
    """The same samples as CSV, WebDataset (text and JSON) and Parquet."""
    put(folder, {f"{k}.jpg": data for k, data in enumerate(IMAGES)})
    rows = [(k, label, IMAGES[k]) for k, label in enumerate(labels)]
    (folder / "x.csv").write_text("path,label\n" + "".join(f"{k}.jpg,{label}\n" for k, label, _ in rows))
    pq.write_table(pa.table({"image": [d for _, _, d in rows], "label": labels}), folder / "x.parquet")
    texts = [r for k, label, data in rows for r in ((f"{k}.jpg", data), (f"{k}.cls", label.encode()))]
    jsons = [r for k, label, data in rows for r in ((f"{k}.jpg", data), (f"{k}.json", json.dumps({"label": label}).encode()))]
    return [
        folder / "x.csv", folder / "x.parquet", make_tar(folder / "x.tar", texts), make_tar(folder / "j.tar", jsons)
    ]  # fmt: skip


def test_underscores_make_no_number(tmp_path: Path) -> None:
    """Python reads 1_2 as 12: the classes of it and of 12 would be one."""
    for src in sources(tmp_path, ["1_2", "1_1", "1_2"]):
        assert labels_of(src) == (["1_1", "1_2"], [1, 0, 1])
    for src in sources(tmp_path, ["1_2", "12", "1_2"]):
        with pytest.raises(SourceError, match=r"the label '1_2' is text, but that of .*, '12', is a number"):
            opened(src, tmp_path)


@pytest.mark.parametrize("label", ["1e999", "9" * 5000])
def test_numbers_without_an_end_name_their_row(tmp_path: Path, label: str) -> None:
    for src, row in zip(sources(tmp_path, ["1", label, "2"]), ("line 3", "row 1", "1.jpg", "1.jpg"), strict=True):
        with pytest.raises(SourceError, match=rf"{row}: the label (inf|9+) is not a class id: it is above 1000000000000"):
            opened(src, tmp_path)
    pq.write_table(pa.table({"image": IMAGES[:2], "label": [1.0, float("inf")]}), tmp_path / "inf.parquet")
    with pytest.raises(SourceError, match=r"inf\.parquet: row 1: the label inf is not a class id"):
        opened(tmp_path / "inf.parquet", tmp_path)


def test_large_ids_in_the_order_of_a_file(tmp_path: Path) -> None:
    """Without a list of all numbers below them."""
    order = tmp_path / "order.txt"
    order.write_text("1000000\n900000000000\n7\n")
    for src in sources(tmp_path, ["900000000000", "7", "1000000"]):
        assert labels_of(src, class_order=str(order)) == (["1000000", "900000000000", "7"], [1, 2, 0])
    order.write_text("2\n0\n1\n")
    for src in sources(tmp_path, ["0", "2", "2.0"]):
        assert labels_of(src, class_order=str(order)) == (["2", "0", "1"], [1, 0, 0])
    with pytest.raises(SourceError, match=rf"order\.txt: has no class '3', but {tmp_path}/x\.csv does$"):
        opened(sources(tmp_path, ["0", "3", "2"])[0], class_order=str(order))


def test_natural_order_of_names_that_come_with_ids(tmp_path: Path) -> None:
    """As ClassLabel has them: their order stays unless another is asked for."""
    for names, natural in ((["b10", "b2"], ["b2", "b10"]), (["cat", "cat"], None)):
        table = pa.table({"image": IMAGES[:3], "label": [0, 1, 0]})
        feature = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(feature)}), tmp_path / "x.parquet")
        assert labels_of(tmp_path / "x.parquet") == (names, [0, 1, 0])
        if natural:
            assert labels_of(tmp_path / "x.parquet", class_order="natural") == (natural, [1, 0, 1])
        else:
            with pytest.raises(SourceError, match=r"x\.parquet: calls two classes 'cat', so `class_order=natural` cannot tell"):
                opened(tmp_path / "x.parquet", tmp_path, class_order="natural")
    for src in sources(tmp_path, ["10", "2", "0"]):
        assert labels_of(src, class_order="natural") == ([str(i) for i in range(11)], [10, 2, 0])


def test_columns_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    put(tmp_path, {"0.jpg": IMAGES[0]})
    (tmp_path / "x.csv").write_text("path,label,label\n0.jpg,1,2\n")
    with pytest.raises(SourceError, match=r"has several columns 'label'\. Rename one of them"):
        opened(tmp_path / "x.csv")
    with pytest.raises(SourceError, match=r"has 2 columns 'label'"):
        opened(tmp_path / "x.csv", label_column="label")


def test_tables_in_utf16_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("path,label\n0.jpg,1\n".encode("utf-16"))
    with pytest.raises(SourceError, match=r"x\.csv: is text in UTF-16\. Save it as UTF-8"):
        opened(tmp_path / "x.csv")


def test_blank_labels_are_bad_records(tmp_path: Path) -> None:
    for blank in ("", "  "):
        for src in sources(tmp_path, ["cat", blank, "dog"]):
            with pytest.raises(SourceError, match=r"(line 3|row 1|1\.jpg): (it|its) .*(no label|is empty|empty label)"):
                convert(str(src), str(tmp_path / "o.beton"))
            result = convert(str(src), str(tmp_path / "o.beton"), on_error="skip")
            beton = Beton(tmp_path / "o.beton")
            assert (result["skipped"], beton.class_names, beton.class_counts.tolist()) == (1, ["cat", "dog"], [1, 1]), src


def test_a_file_that_is_not_there_is_a_bad_record(tmp_path: Path) -> None:
    put(tmp_path, {"0.jpg": IMAGES[0], "2.jpg": IMAGES[2]})
    (tmp_path / "x.csv").write_text("path,label\n0.jpg,b\n1.jpg,a\n2.jpg,b\n")
    pq.write_table(pa.table({"path": ["0.jpg", "1.jpg", "2.jpg"], "label": ["b", "a", "b"]}), tmp_path / "x.parquet")
    for src, row in (("x.csv", "line 3"), ("x.parquet", "row 1")):
        with pytest.raises(SourceError, match=rf"{src}: {row}: [^']*1\.jpg: No such file or directory\. Repair or remove it"):
            convert(str(tmp_path / src), str(tmp_path / "o.beton"))
        result = convert(str(tmp_path / src), str(tmp_path / "o.beton"), on_error="skip")
        assert (result["samples"], result["skipped"]) == (2, 1)
        beton = Beton(tmp_path / "o.beton")
        assert (beton.class_names, beton.labels.tolist()) == (["a", "b"], [1, 1]), "ids do not move"


def test_a_nul_and_a_pipe_name_their_line(tmp_path: Path) -> None:
    put(tmp_path, {"0.jpg": IMAGES[0], "sub": None})
    for name, message in (("1\0.jpg", "(a NUL in a file's name|line contains NUL)"), ("sub", "sub: is a folder, not a file")):
        (tmp_path / "x.csv").write_text(f"path,label\n0.jpg,1\n{name},1\n")
        with pytest.raises(SourceError, match=rf"x\.csv: line 3: .*{message}"):
            opened(tmp_path / "x.csv")


def test_tables_need_not_be_utf8(tmp_path: Path) -> None:
    put(tmp_path, {"0.jpg": IMAGES[0], "1.jpg": IMAGES[1]})
    (tmp_path / "x.csv").write_bytes(b"path,label\n0.jpg,caf\xe9\n1.jpg,tea\n")
    assert samples(tmp_path / "x.csv") == [("caf\udce9", IMAGES[0]), ("tea", IMAGES[1])]
    convert(str(tmp_path / "x.csv"), str(tmp_path / "o.beton"))
    assert Beton(tmp_path / "o.beton").class_names == ["caf\udce9", "tea"]


def test_the_rule_that_was_applied_is_told(tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    order.write_text("dog\ncat\n")
    cases = (
        (["0", "2"], {}, "labels are class ids"), (["0", "9000000"], {}, "labels are class ids, renumbered in ascending order"),
        (["cat", "dog"], {}, "labels are class names, in the order of their bytes"),
        (["cat", "dog"], {"class_order": "natural"}, "labels are class names, in natural order"),
        (["cat", "dog"], {"class_order": str(order)}, f"labels are class names, in the order of {order}"),
    )  # fmt: skip
    for labels, options, rule in cases:
        for src in sources(tmp_path, labels):
            rules = convert(str(src), str(tmp_path / "o.beton"), dry_run=True, **options)["rules"]  # type: ignore[arg-type]
            assert rules[-1] == rule
            assert (len(rules) == 2) == (src.suffix == ".tar") and (len(rules) == 1 or rules[0].startswith("a WebDataset"))
