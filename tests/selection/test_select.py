"""`mmrlhf select` as a user calls it: what it writes, that it repeats, and one line for each mistake."""

import json
import subprocess
import sys
import typing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf.errors import UserError
from selection.coverage import coverage
from selection.files import embedding_hash, read_already, read_embeddings
from selection.select import SelectConfig, select
from selection.strategies import STRATEGIES, StrategyName
from tests.selection.data import gaussian, plain_greedy

NEEDS = {"similarity": {"query": "q.npy"}, "uncertainty": {"predictions": "p.npy"}, "badge": {"predictions": "p.npy"}}


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    """A .npy file of 200 rows; beside it predictions of 5 members, 2 queries, and a table."""
    np.save(tmp_path / "x.npy", gaussian(200, 6))
    np.save(tmp_path / "p.npy", gaussian(5, 200, 1))
    np.save(tmp_path / "q.npy", gaussian(2, 6, 2))
    rows = [{"prompt": f"p{n % 40}", "sharpness": n / 200, "source": "web" if n % 4 else "camera"} for n in range(200)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "x.npy"


def test_the_command_line_offers_every_strategy() -> None:
    assert set(typing.get_args(StrategyName)) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_written(strategy: str, matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = matrix.parent / "deep" / "chosen.json"
    config = SelectConfig(embeddings=matrix, budget=20, strategy=strategy, seed=3, out=out, **needs(strategy, matrix))  # type: ignore[arg-type]
    result = select(config)
    assert json.loads(out.read_text()) == result
    x = np.load(matrix)
    assert len(set(result["indices"])) == 20 == len(result["gains"]) == len(result["why"])
    assert result["embedding_hash"] == embedding_hash(x) and result["seed"] == 3 and result["strategy"] == strategy
    assert result["coverage"] == coverage(x, result["indices"])
    assert result["baseline_random"]["radius"] > 0 and result["seconds"] > 0
    picks = zip(result["indices"], result["gains"], result["why"], strict=True)
    assert result["picks"] == [
        {"index": index, "strategy": strategy, "gain": gain, "why": why} for index, gain, why in picks
    ]
    assert str(out) in capsys.readouterr().out
    assert select(config)["indices"] == result["indices"]
    assert [path.name for path in out.parent.iterdir()] == ["chosen.json"]


def needs(strategy: str, matrix: Path) -> dict[str, Any]:
    """The options without which a strategy does nothing."""
    given = {name: matrix.parent / file for name, file in NEEDS.get(strategy, {}).items()}
    return given | ({"query": (str(given["query"]),)} if "query" in given else {})


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


RECIPE = """strategies:
  - {type: diversity}
  - {type: similarity, strength: 0.5}
  - {type: weights, column: sharpness, strength: 0.5}
  - {type: uncertainty, strength: 0.5}
  - {type: balance, column: source, shares: {camera: 0.5, web: 0.5}}
  - {type: threshold, condition: sharpness >= 0.25}
"""


def test_a_recipe_with_everything(matrix: Path) -> None:
    folder = matrix.parent
    (folder / "r.yaml").write_text(RECIPE)
    config = SelectConfig(
        embeddings=matrix, budget=30, recipe=folder / "r.yaml", metadata=folder / "m.jsonl", query=(str(folder / "q.npy"),),
        predictions=folder / "p.npy", group="prompt", most_per_group=1, where=("sharpness < 0.9",), out=folder / "o.json",
    )  # fmt: skip
    result = select(config)
    assert (
        json.loads((folder / "o.json").read_text())
        == result
        == select(config) | {key: result[key] for key in ("seconds", "seconds_total")}
    )
    chosen = np.array(result["indices"])
    assert result["strategy"] == "recipe" and [each["type"] for each in result["strategies"]][-2:] == [
        "threshold",
        "per-group",
    ]
    assert chosen.min() >= 50 and chosen.max() < 180 and max(Counter(chosen % 40).values()) == 1
    assert (
        abs(int((chosen % 4 == 0).sum()) - 15) <= 5
    )  # every fourth is of the camera; at most 10 of its groups are left
    names = {pick["strategy"] for pick in result["picks"]}
    assert (
        names <= {"diversity", "similarity", "weights of sharpness", "uncertainty", "balance of source"}
        and len(names) > 2
    )


@pytest.mark.parametrize("strategy", ["kcenter", "random", "similarity", "uncertainty"])
def test_limits_a_group_keep_the_strategy(strategy: str, matrix: Path) -> None:
    def chosen(**options: Any) -> list[int]:
        given: dict[str, Any] = (
            {"strategy": strategy, "out": matrix.with_suffix(".json")} | needs(strategy, matrix) | options
        )
        return select(SelectConfig(embeddings=matrix, budget=20, **given))["indices"]

    metadata, free = matrix.parent / "m.jsonl", chosen()
    loose = chosen(metadata=metadata, group="prompt", most_per_group=20)
    assert loose == free or strategy == "random"  # which is drawn one by one then
    strict = chosen(metadata=metadata, group="prompt", most_per_group=1)
    assert len({index % 40 for index in strict}) == 20 and strict[0] == loose[0]


def test_metadata_from_the_parquet_file_of_the_embeddings(matrix: Path) -> None:
    table = {"embedding": list(np.load(matrix)), "source": ["a", "b"] * 100}
    pq.write_table(pa.table(table), matrix.with_suffix(".parquet"))
    out = matrix.with_suffix(".json")
    plain = select(SelectConfig(embeddings=matrix, budget=20, out=out))
    same = select(SelectConfig(embeddings=matrix.with_suffix(".parquet"), budget=20, out=out))
    assert (same["indices"], same["embedding_hash"]) == (plain["indices"], plain["embedding_hash"])
    some = select(SelectConfig(embeddings=matrix.with_suffix(".parquet"), budget=20, out=out, where=("source == b",)))
    assert all(index % 2 for index in some["indices"])


def test_predictions_change_density_and_designs(matrix: Path) -> None:
    for strategy in ("density", "d-optimal", "v-optimal"):
        options: dict[str, Any] = {
            "embeddings": matrix,
            "budget": 20,
            "strategy": strategy,
            "out": matrix.with_suffix(".json"),
        }
        assert (
            select(SelectConfig(**options))["indices"]
            != (select(SelectConfig(**options, predictions=matrix.parent / "p.npy"))["indices"])
        )


def test_images_are_chosen_by_likeness_and_by_their_metadata(clip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "03.png").write_bytes(b"broken")
    options: dict[str, Any] = {"images": pictures, "model": str(clip_folder), "budget": 2, "cache": tmp_path / "c"}
    like = select(
        SelectConfig(**options, strategy="similarity", query=(str(pictures / "00.png"),), out=tmp_path / "a.json")
    )
    assert [Path(path).name for path in like["paths"]] == ["00.png", "11.png"]  # copies of one another
    assert like["gains"] == pytest.approx([1, 1], abs=1e-5)
    (tmp_path / "m.csv").write_text(
        "n\n" + "\n".join(map(str, range(12))) + "\n"
    )  # a row an image, also the broken one
    np.save(tmp_path / "p.npy", np.where(np.isin(np.arange(12), [4, 9]), 1.0, 0.0) * np.array([[9.0], [-9.0]]))
    few = select(SelectConfig(**options, metadata=tmp_path / "m.csv", where=("n >= 10",), out=tmp_path / "a.json"))
    assert sorted(Path(path).name for path in few["paths"]) == ["10.png", "11.png"]
    unsure = SelectConfig(**options, strategy="uncertainty", predictions=tmp_path / "p.npy", out=tmp_path / "a.json")
    assert [Path(path).name for path in select(unsure)["paths"]] == ["04.png", "09.png"]


@pytest.mark.parametrize("strategy", ["kcenter", "facility-location", "random"])
def test_shards_of_a_file_of_a_folder_and_of_a_table(strategy: str, matrix: Path) -> None:
    x, folder = np.load(matrix), matrix.parent / "parts"
    folder.mkdir()
    for name, part in zip("ab", np.split(x, [70]), strict=True):
        np.save(folder / f"{name}.npy", part)
    pq.write_table(pa.table({"embedding": list(x)}), matrix.with_suffix(".parquet"))

    def chosen(embeddings: Path, **given: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"strategy": strategy, "out": matrix.with_suffix(".json")} | given
        return select(SelectConfig(embeddings=embeddings, budget=20, **options))

    files = chosen(folder, cache=folder / "kept", report=folder / "page.html")
    assert files["shards"] == 2 and files["embedding_hash"] == embedding_hash(x) and files["rows"] == 200
    assert files["coverage"] == coverage(x, files["indices"]) and (folder / "page.html").exists()
    assert len(list(folder.glob("kept/shards/*.json"))) == (0 if strategy == "random" else 2)
    ranges = [chosen(each, shards=5) for each in (matrix, folder, matrix.with_suffix(".parquet"))]
    assert ranges[0]["shards"] == 5 and ranges[0]["indices"] == ranges[1]["indices"] == ranges[2]["indices"]
    whole = chosen(matrix)
    assert "shards" not in whole and ranges[0]["baseline_random"] == whole["baseline_random"]
    assert ranges[0]["coverage"]["mean_distance"] < 1.2 * whole["coverage"]["mean_distance"]
    assert (ranges[0]["indices"] == whole["indices"]) == (strategy == "random")
    rest = chosen(matrix, shards=3, already=matrix.with_suffix(".json"))
    assert not set(rest["indices"]) & set(whole["indices"])


def test_images_in_shards(clip_folder: Path, pictures: Path, tmp_path: Path) -> None:
    config = SelectConfig(images=pictures, model=str(clip_folder), budget=4, shards=3, out=tmp_path / "a.json")
    result = select(config)
    assert [Path(path).name for path in result["paths"]] == [f"{index:02}.png" for index in result["indices"]]


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


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "recipe and strategy": ({"recipe": "r.yaml", "strategy": "dpp"}, "got --recipe and --strategy dpp, allowed is one"),
    "group alone": ({"group": "prompt"}, "got --group without --most-per-group"),
    "most alone": ({"most_per_group": 1}, "got --most-per-group without --group"),
    "no query": ({"strategy": "similarity"}, "--strategy similarity needs --query"),
    "idle query": ({"query": ("a cat",)}, "--strategy kcenter takes no --query: use --strategy similarity"),
    "no predictions": ({"strategy": "badge"}, "--strategy badge needs --predictions"),
    "idle predictions": ({"predictions": "p.npy"}, "--strategy kcenter takes no --predictions: use --strategy uncertainty or"),
    "idle metadata": ({"metadata": "m.jsonl"}, "--metadata is used by --where, --group and --recipe"),
    "limits": ({"strategy": "dpp", "where": ("sharpness > 1",)}, "dpp cannot keep to --where and --group, allowed are kcenter"),
    "no metadata": ({"where": ("sharpness > 1",)}, "no column 'sharpness': allowed are none, as there is no metadata"),
    "no column": ({"metadata": "m.jsonl", "where": ("blur > 1",)}, "no column 'blur': allowed are prompt, sharpness, source"),
    "condition": ({"metadata": "m.jsonl", "where": ("blur",)}, "cannot read the condition 'blur'"),
    "short": ({"metadata": "short.csv", "where": ("a > 1",)}, "short.csv has 1 rows for 200 rows of the embeddings"),
    "members": ({"strategy": "uncertainty", "predictions": "x.npy"}, "x.npy has 6 columns for 200 rows, allowed is one each"),
    "no file": ({"strategy": "uncertainty", "predictions": "none.npy"}, "cannot read the predictions .*none.npy"),
    "width": ({"strategy": "similarity", "query": ("a cat",)}, "embed them with the model of the embeddings"),
    "sharded dpp": ({"strategy": "dpp", "shards": 2}, "--strategy dpp cannot be used with --shards .*allowed is --strategy kc"),
    "sharded recipe": ({"recipe": "r.yaml", "shards": 2}, "--recipe cannot be used with --shards"),
    "sharded limits": ({"where": ("a > 1",), "shards": 2}, "--where cannot be used with --shards"),
    "folder of dpp": ({"strategy": "dpp", "embeddings": "."}, "--strategy dpp cannot be used with --shards or a folder"),
    "no shards": ({"shards": 0}, "--shards got 0, allowed is 1 or more"),
    "many shards": ({"shards": 201}, "got 201 shards, allowed are 1 to 200"),
    "no workers": ({"workers": 0}, "--workers got 0, allowed is 1 or more"),
    "idle workers": ({"workers": 2}, "--workers needs --shards N"),
    "idle ray": ({"ray": "local"}, "--ray needs --shards N"),
    "workers and ray": ({"shards": 2, "workers": 2, "ray": "local"}, "got both of --workers and --ray"),
    "capped": ({"metadata": "m.jsonl", "group": "prompt", "most_per_group": 1, "budget": 41}, "budget 41, allowed is 1 to 40"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_OPTIONS)
def test_options_that_do_not_fit_are_told(kind: str, matrix: Path) -> None:
    given, message = BAD_OPTIONS[kind]
    (matrix.parent / "short.csv").write_text("a\n1\n")
    files = ("recipe", "metadata", "predictions", "embeddings")
    options: dict[str, Any] = {"budget": 3, "out": matrix.with_suffix(".json"), "embeddings": matrix}
    options |= {name: matrix.parent / value if name in files else value for name, value in given.items()}
    with pytest.raises(UserError, match=message):
        select(SelectConfig(**options))
    assert not matrix.with_suffix(".json").exists()


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
    limits = ("--metadata", str(tmp_path / "m.jsonl"), "--group", "prompt", "--most-per-group", "1")
    conditions = ("--where", "sharpness >= 0.5", "source == web")
    kept = run("--embeddings", str(matrix), "--budget", "5", *limits, *conditions, "--out", out)
    chosen = json.loads(Path(out).read_text())["indices"]
    assert kept.returncode == 0 and len(chosen) == 5 and all(index >= 100 and index % 4 for index in chosen)
    bad = run("--embeddings", str(tmp_path / "none.npy"), "--budget", "5", "--out", out)
    assert bad.returncode == 2 and bad.stderr.startswith("mmrlhf: error: cannot read the embeddings")
    assert len(bad.stderr.splitlines()) == 1
