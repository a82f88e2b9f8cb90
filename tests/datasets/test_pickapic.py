"""Pick-a-Pic in and out: bytes, fetched images, ties, and back."""

from pathlib import Path

import pyarrow.parquet as pq

from mmrlhf.data import Pair, read_pairs, write_pairs
from mmrlhf.datasets import reader
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.datasets.importing import ImportConfig, import_data
from mmrlhf.datasets.judgements import images_of
from mmrlhf.datasets.rows import Fault, Row
from mmrlhf.images import content_hash
from tests.datasets.files import parquet, pickapic_row, picture, touch


def test_pickapic_rows_become_pairs_and_each_image_one_file(tmp_path: Path) -> None:
    rows = [pickapic_row(1, 2, 1.0), pickapic_row(2, 3, 0.5), pickapic_row(3, 1, 0.0, has_label=False)]
    parquet(rows[:2], tmp_path / "in" / "train-00000-of-00002.parquet")
    parquet(rows[2:], tmp_path / "in" / "train-00001-of-00002.parquet")
    assert import_data(ImportConfig("pickapic", tmp_path / "in", tmp_path / "out")) == 3
    read = read_pairs(tmp_path / "out" / "pairs.jsonl")
    assert [(p.label_0, p.has_label) for p in read] == [(1.0, True), (0.5, True), (0.0, False)]
    assert [p.annotator for p in read] == ["4", "4", "4"]
    files = sorted((tmp_path / "out" / "images").iterdir())
    assert [file.suffix for file in files] == [".jpg"] * 3
    assert {file.read_bytes() for file in files} == {picture(n) for n in (1, 2, 3)}
    assert read[0].image_1 == read[1].image_0 and read[0].image_1.stem == content_hash(picture(2))
    assert not list(tmp_path.glob("*.partial"))


def test_pickapic_without_bytes_reads_the_images_that_were_fetched(tmp_path: Path) -> None:
    bare = {"jpg_0": None, "jpg_1": None}
    source = parquet([pickapic_row(1, 2, 1.0, **bare), pickapic_row(1, 9, 1.0, **bare)], tmp_path / "v2.parquet")
    touch(tmp_path / "cache", "u1.jpg", "u2.webp")
    rows = list(reader("pickapic")(source, tmp_path / "cache"))
    assert isinstance(rows[0], Row) and images_of(rows[0].judgement)[1] == tmp_path / "cache" / "u2.webp"
    assert isinstance(rows[1], Fault) and "u9" in rows[1].problem
    assert all(isinstance(row, Fault) and "--images" in row.problem for row in reader("pickapic")(source, None))


def test_pickapic_written_and_imported_again_is_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    pairs = [
        Pair("x", a, b, 1.0, annotator="ann"),
        Pair("x", b, c, 0.5),
        Pair("y", c, a, 0.3, has_label=False),
        Pair("y", a, c, 0.0),
    ]
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    export(ExportConfig(tmp_path / "out.parquet", data=tmp_path / "pairs.jsonl", format="pickapic"))
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["num_example_per_prompt"] for row in table] == [2, 2, 2, 2]
    assert table[1]["best_image_uid"] == "tie" and table[3]["best_image_uid"] == table[3]["image_1_uid"]
    import_data(ImportConfig("pickapic", tmp_path / "out.parquet", tmp_path / "again"))
    again = read_pairs(tmp_path / "again" / "pairs.jsonl")
    assert len(again) == len(pairs)
    for before, after in zip(pairs, again, strict=True):
        for name in ("prompt", "label_0", "has_label", "annotator"):
            assert getattr(before, name) == getattr(after, name)
        assert before.image_0.read_bytes() == after.image_0.read_bytes()
        assert before.image_1.read_bytes() == after.image_1.read_bytes()
