"""`mmrlhf select` as a user calls it: what it writes, that it repeats, and one line for each mistake."""

import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

from mmrlhf.errors import UserError
from selection.coverage import coverage
from selection.files import embedding_hash, read_already, read_embeddings
from selection.select import SelectConfig, select
from selection.strategies import STRATEGIES, StrategyName
from tests.selection.data import gaussian, plain_greedy


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    """A .npy file of 200 rows."""
    np.save(tmp_path / "x.npy", gaussian(200, 6))
    return tmp_path / "x.npy"


def test_the_command_line_offers_every_strategy() -> None:
    assert set(typing.get_args(StrategyName)) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_written(strategy: str, matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = matrix.parent / "deep" / "chosen.json"
    config = SelectConfig(embeddings=matrix, budget=20, strategy=strategy, seed=3, out=out)  # type: ignore[arg-type]
    result = select(config)
    assert json.loads(out.read_text()) == result
    x = np.load(matrix)
    assert len(set(result["indices"])) == 20 == len(result["gains"]) == len(result["why"])
    assert result["embedding_hash"] == embedding_hash(x) and result["seed"] == 3 and result["strategy"] == strategy
    assert result["coverage"] == coverage(x, result["indices"])
    assert result["baseline_random"]["radius"] > 0 and result["seconds"] > 0
    assert str(out) in capsys.readouterr().out
    assert select(config)["indices"] == result["indices"]
    assert [path.name for path in out.parent.iterdir()] == ["chosen.json"]


def test_the_baseline_is_not_the_random_strategy_itself(matrix: Path) -> None:
    result = select(SelectConfig(embeddings=matrix, budget=20, strategy="random", out=matrix.with_suffix(".json")))
    assert result["coverage"] != result["baseline_random"]


def test_k_center_covers_clusters_that_random_rows_miss(tmp_path: Path) -> None:
    centres = 10 * gaussian(30, 8, 1)
    sizes = np.r_[np.full(10, 60), np.full(20, 3)]
    np.save(tmp_path / "x.npy", (np.repeat(centres, sizes, axis=0) + gaussian(660, 8)).astype(np.float32))
    result = select(SelectConfig(embeddings=tmp_path / "x.npy", budget=30, out=tmp_path / "o.json"))
    assert result["coverage"]["radius"] < 0.5 * result["baseline_random"]["radius"]


def test_rounds_follow_one_another(matrix: Path) -> None:
    first, second, third = (matrix.parent / f"{name}.json" for name in "abc")
    one = select(SelectConfig(embeddings=matrix, budget=10, out=first))["indices"]
    two = select(SelectConfig(embeddings=matrix, budget=10, out=second, already=first))["indices"]
    three = select(SelectConfig(embeddings=matrix, budget=10, out=third, already=second))
    assert one + two + three["indices"] == [one[0], *plain_greedy(np.load(matrix), 29, one[:1])]
    assert three["already"] == one + two


def test_already_selected_rows_are_read_from_several_kinds_of_file(tmp_path: Path) -> None:
    path = tmp_path / "already"
    for text in ("3\n1\n2\n", "[3, 1, 2]", '{"indices": [1, 2], "already": [3]}'):
        path.write_text(text)
        assert read_already(path) == [3, 1, 2]
    for text in ("3\nx\n", "[1.5]", '{"rows": [1]}', "[1", "[null]", "[[1]]", '{"indices": 3}'):
        path.write_text(text)
        with pytest.raises(UserError, match="already .* holds no row numbers"):
            read_already(path)
    with pytest.raises(UserError, match="cannot read --already"):
        read_already(tmp_path / "none")


def test_images_are_embedded_chosen_and_found_again(
    clip_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "03.png").write_bytes(b"broken")
    options = {"images": pictures, "model": str(clip_folder), "budget": 4}
    first = select(SelectConfig(**options, out=tmp_path / "a.json"))  # type: ignore[arg-type]
    assert [Path(path).name for path in first["paths"]] == [f"{i + (i >= 3):02}.png" for i in first["indices"]]
    assert [Path(path).name for path in first["unreadable"]] == ["03.png"]
    assert "skipped 1 unreadable" in capsys.readouterr().out
    (pictures / "00a.png").write_bytes((pictures / "04.png").read_bytes()[:-1] + b"\x00")  # rows move by one
    second = select(SelectConfig(**options, out=tmp_path / "b.json", already=tmp_path / "a.json"))  # type: ignore[arg-type]
    assert second["already_hashes"] == first["hashes"]
    assert not set(second["hashes"]) & set(first["hashes"])


def test_the_report_is_one_page_without_outside_parts(matrix: Path) -> None:
    report = matrix.parent / "report.html"
    out = matrix.parent / "chosen.json"
    result = select(SelectConfig(embeddings=matrix, budget=15, out=out, report=report))
    page = report.read_text()
    assert page.count('fill="#d33"') == 15 and page.count('fill="#bbb"') == 200
    assert "http" not in page and "<script" not in page and "nan" not in page
    assert f"{result['coverage']['radius']:.4g}" in page and f"{result['baseline_random']['radius']:.4g}" in page


def test_a_report_of_rows_that_cannot_be_drawn_apart(tmp_path: Path) -> None:
    for number, x in enumerate((np.ones((5, 3), np.float32), gaussian(5, 1), gaussian(1, 4))):
        np.save(tmp_path / "x.npy", x)
        report = tmp_path / f"{number}.html"
        select(SelectConfig(embeddings=tmp_path / "x.npy", budget=1, out=tmp_path / "o.json", report=report))
        assert "nan" not in report.read_text()


BAD_MATRICES = {
    "pickle": (lambda path: path.write_bytes(b"\x80\x04N."), "cannot read the embeddings"),
    "objects": (lambda path: np.save(path, np.array([[{}]], dtype=object)), "pickled objects, which are never loaded"),
    "text": (lambda path: path.write_text("1,2,3"), "cannot read the embeddings"),
    "empty": (lambda path: path.write_bytes(b""), "cannot read the embeddings"),
    "cut off": (lambda path: cut(path), "cannot read the embeddings"),
    "a vector": (lambda path: np.save(path, np.zeros(5)), r"shape \(5,\), allowed is \(rows, columns\)"),
    "integers": (lambda path: np.save(path, np.zeros((5, 2), int)), "holds int64, allowed are float16"),
    "complex": (lambda path: np.save(path, np.zeros((5, 2), complex)), "holds complex128"),
    "no rows": (lambda path: np.save(path, np.zeros((0, 2))), "allowed is"),
    "infinity": (lambda path: np.save(path, np.full((5, 2), np.inf)), "row 0 of the embeddings holds NaN or infinity"),
}


def cut(path: Path) -> None:
    """A matrix whose file ends too early."""
    np.save(path, gaussian(100, 10))
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("kind", BAD_MATRICES)
def test_bad_matrices_are_told_and_leave_nothing(kind: str, tmp_path: Path) -> None:
    spoil, message = BAD_MATRICES[kind]
    spoil(tmp_path / "x.npy")
    with pytest.raises(UserError, match=message):
        select(SelectConfig(embeddings=tmp_path / "x.npy", budget=1, out=tmp_path / "o.json"))
    assert not (tmp_path / "o.json").exists()


def test_archives_and_other_byte_orders(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", gaussian(3, 2))
    with pytest.raises(UserError, match="is an archive of arrays"):
        read_embeddings(tmp_path / "x.npz")
    np.save(tmp_path / "big.npy", gaussian(3, 2).astype(">f4"))
    assert (read_embeddings(tmp_path / "big.npy") == gaussian(3, 2)).all()


def test_bad_requests_are_told(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    with pytest.raises(UserError, match="got neither of --embeddings and --images"):
        select(SelectConfig(budget=1, out=out))
    with pytest.raises(UserError, match="got both of --embeddings and --images"):
        select(SelectConfig(budget=1, out=out, embeddings=matrix, images=tmp_path))
    with pytest.raises(UserError, match="got budget 201, allowed is 1 to 200"):
        select(SelectConfig(budget=201, out=out, embeddings=matrix))
    with pytest.raises(UserError, match="--budget got 0"):
        select(SelectConfig(budget=0, out=out, embeddings=matrix))
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        select(SelectConfig(budget=1, out=tmp_path, embeddings=matrix))
    with pytest.raises(UserError, match="x.npy is no folder that can be written to"):
        select(SelectConfig(budget=1, out=matrix / "o.json", embeddings=matrix))
    with pytest.raises(UserError, match="unknown strategy 'best': allowed are kcenter"):
        select(unchecked(matrix, out))


def unchecked(matrix: Path, out: Path) -> SelectConfig:
    """A config with a strategy that there is not, past the type checks of its constructor."""
    config = SelectConfig(budget=1, out=out, embeddings=matrix)
    object.__setattr__(config, "strategy", "best")
    return config


def test_from_the_command_line(matrix: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = "from mmrlhf.cli import main; main()"
        return subprocess.run([sys.executable, "-c", program, "select", *words], capture_output=True, text=True)

    out = str(tmp_path / "o.json")
    good = run("--embeddings", str(matrix), "--budget", "5", "--strategy", "kcenter", "--seed", "1", "--out", out)
    assert good.returncode == 0 and good.stdout.strip().endswith(out) and good.stderr == ""
    bad = run("--embeddings", str(tmp_path / "none.npy"), "--budget", "5", "--out", out)
    assert bad.returncode == 2 and bad.stderr.startswith("mmrlhf: error: cannot read the embeddings")
    assert len(bad.stderr.splitlines()) == 1
