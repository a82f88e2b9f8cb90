"""Requests for an export that cannot be met."""

from pathlib import Path

import pytest

from mmrlhf.data import Pair, write_pairs
from mmrlhf.datasets.export import ExportConfig, export
from mmrlhf.errors import UserError
from tests.datasets.files import touch


def test_doubtful_requests_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match="neither of --store and --data"):
        export(ExportConfig(tmp_path / "y.jsonl"))
    with pytest.raises(UserError, match="both of --store and --data"):
        export(ExportConfig(tmp_path / "y.jsonl", store="x.db", data=tmp_path / "z.jsonl"))
    write_pairs([Pair("p", tmp_path / "a.png", tmp_path / "b.png", 1.0)], tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        export(ExportConfig(tmp_path, data=tmp_path / "p.jsonl"))
