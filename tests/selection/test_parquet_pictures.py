"""Pictures in parquet files, as Pick-a-Pic and the `datasets` library write them."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrlhf import cli
from mmrlhf.errors import UserError
from selection.embed import Embedder, embed_files
from selection.inside import Inside, read_picture
from selection.parquet_pictures import Cell
from selection.pictures import list_pictures
from selection.pretrain_views import read_pictures
from selection.select import select
from selection.select_config import SelectConfig


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, 40)).save(file, "png")
    return file.getvalue()


def pick_a_pic(path: Path, rows: int = 6) -> list[bytes]:
    """Two pictures a row in columns of bytes, in groups of two rows."""
    left, right = ([png(20 * row + more) for row in range(rows)] for more in (0, 10))
    table = pa.table({"caption": [f"prompt {row}" for row in range(rows)], "jpg_0": left, "jpg_1": right})
    pq.write_table(table, path, row_group_size=2)
    return [data for pair in zip(left, right, strict=True) for data in pair]


def test_every_cell_is_a_picture_and_the_rest_metadata(tmp_path: Path) -> None:
    expected = pick_a_pic(tmp_path / "a.parquet")
    listed = list_pictures(tmp_path / "a.parquet")
    cells = [picture for picture in listed.pictures if isinstance(picture, Inside)]
    assert [cell.read_bytes() for cell in cells] == expected
    assert [cell.read_bytes() for cell in reversed(cells)] == expected[::-1]
    assert pickle.loads(pickle.dumps(cells[3])).read_bytes() == expected[3]
    assert listed.columns == {"caption": [f"prompt {row}" for row in range(6) for _ in range(2)]}
    assert not listed.unreadable and str(cells[1]) == f"{tmp_path}/a.parquet/jpg_1/0"
    np.testing.assert_allclose(read_picture(cells[2])[:, 0, 0] * 255, [20, 235, 40], atol=1e-3)


def test_structures_of_the_datasets_library(tmp_path: Path) -> None:
    images: list[Any] = [{"bytes": png(9), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None, {"bytes": b"no"}]
    pq.write_table(pa.table({"image": images, "text": list("abcd")}), tmp_path / "a.parquet")
    listed = list_pictures(tmp_path)
    embedded = embed_files(listed.pictures, Embedder("tiny-clip"))
    assert [str(path) for path in embedded.paths] == [f"{tmp_path}/a.parquet/image/0"]
    reasons = list(embedded.unreadable.values())
    assert len(reasons) == 3 and all("holds no picture" in reason for reason in reasons[:2])


def test_in_a_folder_beside_files_and_tables_without_pictures(tmp_path: Path) -> None:
    pick_a_pic(tmp_path / "b.parquet", rows=1)
    (tmp_path / "a.png").write_bytes(png(200))
    pq.write_table(pa.table({"image": ["a.png"], "quality": [0.3]}), tmp_path / "metadata.parquet")
    listed = list_pictures(tmp_path)
    assert [type(picture) is Cell for picture in listed.pictures] == [False, True, True]
    assert listed.columns == {"caption": [None, "prompt 0", "prompt 0"]}
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    assert list(list_pictures(tmp_path).unreadable) == [str(tmp_path / "c.parquet")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"url": ["http://a"]}, "has no column of pictures' bytes, only url"), (None, "is no parquet file")],
)
def test_what_holds_no_picture_is_one_line(tmp_path: Path, columns: dict[str, Any] | None, message: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"none") if columns is None else pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=message):
        list_pictures(path)


def test_pretraining_reads_in_random_order(tmp_path: Path) -> None:
    pick_a_pic(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="is a parquet file, and pictures are read in random order"):
        read_pictures(tmp_path)


def test_selection_names_the_cells_and_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pick_a_pic(tmp_path / "a.parquet")
    out, page = tmp_path / "chosen.json", tmp_path / "page.html"
    result = select(SelectConfig(budget=4, out=out, images=tmp_path / "a.parquet", model="tiny-clip", report=page))
    for pick in result["picks"]:
        cell = (pick["table"], pick["column"], pick["row"])
        assert cell == (str(tmp_path / "a.parquet"), f"jpg_{pick['index'] % 2}", pick["index"] // 2)
    assert json.loads(out.read_text())["indices"] == result["indices"]
    assert page.read_text().count("data:image/") >= 4 and len(expected) == 12
    words = ["select", "--images", tmp_path / "a.parquet", "--budget", 2, "--out", tmp_path / "two.json"]
    monkeypatch.setattr("sys.argv", ["mmrlhf", *map(str, words)])
    cli.main()
    assert len(json.loads((tmp_path / "two.json").read_text())["picks"]) == 2
