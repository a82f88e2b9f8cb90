"""The whole loop, small: what it writes, that a seed is a run, that a kill anywhere changes nothing, and what it refuses."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps import rate_server
from mmrlhf.errors import UserError
from mmrlhf.images import load_image
from mmrlhf.quickstart import candidates, tuning
from mmrlhf.quickstart.loop import quickstart
from mmrlhf.quickstart.rating import check_answers, check_port
from mmrlhf.quickstart.run import QuickstartConfig, open_run
from mmrlhf.quickstart.tuning import gain
from mmrlhf.simulate import RATERS
from mmrlhf.sockets import bind
from mmrlhf.store import Store
from mmrlhf.taste import taste
from mmrlhf.training import TrainingRun
from mmrlhf.types import Preference

NAMED = {
    "gold_before", "gold_after", "gold_gain_sd", "gold_gain_ci95", "reward_agreement", "reward_agreement_ci95",
    "rater_agreement", "ece_before", "ece_after", "kl", "text_similarity_before", "text_similarity_after", "labels_used",
    "seconds_by_stage", "peak_rss_mib",
}  # fmt: skip
STAGES = ["generate", "rate-first", "rate-second", "rate-held-out", "reward", "fine-tune", "evaluate"]


def small(out: Path, **changes: Any) -> QuickstartConfig:
    config = QuickstartConfig(
        out=out, train_prompts=8, held_out_prompts=5, images_per_prompt=3, pairs=12, held_out_pairs=8, epochs=2,
        samples_per_epoch=8, samples_per_prompt=2, train_batch_size=4, num_steps=3, guidance_scale=1.0, only="diffusion",
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """What must repeat."""
    return {name: value for name, value in metrics.items() if not name.startswith(("seconds", "peak_rss"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("loop") / "run"
    return folder, quickstart(small(folder))


def test_metrics_are_there_and_are_numbers(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics.keys() >= NAMED
    assert list(metrics["seconds_by_stage"]) == STAGES
    numbers = [value for value in metrics.values() if isinstance(value, float)]
    assert np.isfinite(numbers).all()
    assert metrics["labels_used"] == 12 * len(RATERS)
    low, high = metrics["gold_gain_ci95"]
    assert low <= metrics["gold_gain_sd"] <= high


def test_gold_is_the_hidden_taste_of_the_pictures_on_disk(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    rows = json.loads((folder / "stages" / "evaluate.json").read_text())["by_prompt"]
    for when in ("before", "after"):
        files = [folder / name for row in rows for name in row[f"{when}_images"]]
        scores = [float(taste(load_image(file).unsqueeze(0))) for file in files]
        assert len(files) == 15 and np.mean(scores) == pytest.approx(metrics[f"gold_{when}"], abs=1e-4)


def test_ratings_are_in_the_store_and_declared_simulated(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    store = Store(f"sqlite:///{folder / 'ratings.sqlite'}")
    try:
        preferences = store.preferences()
    finally:
        store.close()
    assert len(preferences) == (12 + 8) * len(RATERS)
    assert {preference.source for preference in preferences} == {"simulated"}
    assert {preference.annotator for preference in preferences} == {rater.name for rater in RATERS}


def test_held_out_prompts_are_apart(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    rows = json.loads((folder / "stages" / "generate.json").read_text())
    train, held_out = ({row["prompt"] for row in rows[name]} for name in ("train", "held_out"))
    assert len(train) == 8 and len(held_out) == 5 and not train & held_out
    assert set((folder / "train_prompts.txt").read_text().split("\n")) - {""} == train


def test_the_report_is_one_page_that_says_simulated(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    page = (folder / "report.html").read_text()
    assert "simulated" in page and f"{metrics['gold_gain_sd']:+.2f}" in page
    assert not any(f'{attribute}="{scheme}' in page for attribute in ("src", "href") for scheme in ("http", "/", "."))
    assert (folder / "before_after.png").is_file()
    assert page.count("data:image/png;base64") >= 5 * 2 and page.count("data:image/svg+xml") == 3


def test_a_person_rates_in_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One person, who skips all of the first phase and calls a pair a tie, through the store of the app that the loop opens."""
    monkeypatch.setattr(rate_server, "OFFER_SECONDS", 1.0)
    config = small(tmp_path / "run", rater="human", pairs=6, held_out_pairs=4, epochs=1, port=0)
    done = threading.Event()

    def rate() -> None:
        file = config.out / "ratings.sqlite"
        while not file.exists() and not done.wait(0.1):
            pass
        store, number = Store(str(file)), 0
        while not done.wait(0.1):
            for task in store.next_tasks("me", count=3):
                items = (task.item_0, task.item_1)
                if number < 2:
                    store.skip(task, "me")
                else:
                    store.add(Preference(task.prompt, items, (0.5, 1.0, 0.0, 1.0)[number % 4], "me", "human", items,
                                         vote_id=f"{number:032x}"))  # fmt: skip
                number += 1
        store.close()

    person = threading.Thread(target=rate)
    person.start()
    try:
        metrics = quickstart(config)
    finally:
        done.set()
        person.join()
    assert metrics["rater"] == "human" and metrics["labels_used"] == 4 and metrics["rater_agreement"] is None
    page = (config.out / "report.html").read_text()
    assert "there was one rater" in page and "The raters are simulated" not in page
    phases = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase")]
    assert phases == [f"phase {i + 1} of 3: {count} pairs to rate" for i, count in enumerate((2, 4, 4))]


def test_too_few_answers_are_one_line() -> None:
    pairs: list[dict[str, Any]] = [
        {"prompt": "a", "labels": [1.0]},
        {"prompt": "b", "labels": []},
        {"prompt": "a", "labels": [0.0, 0.5]},
    ]
    check_answers(pairs, prompts=1)
    with pytest.raises(UserError, match="got 1, allowed is 2 or more: begin anew in another --out, and skip less"):
        check_answers(pairs, prompts=2)


def test_a_taken_port_is_found_before_anything_is_done(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        config = small(tmp_path / "run", rater="human", port=listener.getsockname()[1])
        with pytest.raises(UserError, match="cannot serve at .* give another --port"):
            check_port(config)
        check_port(dataclasses.replace(config, rater="simulated"))
    check_port(config)


def interrupted(call: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, of which the `call`-th call ends the program before anything is done."""
    count = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return work(*arguments, **named)

    return wrapped


@pytest.mark.slow
def test_killed_in_every_stage_ends_with_the_same_metrics(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Each place stops the run once; the folder then goes on from there."""
    places: list[tuple[Any, str, int]] = [
        (candidates, "save_image", 30),  # the held-out pictures are half written
        (Store, "add_many", 1),  # tasks are queued, no answer is in
        (Store, "close", 2),  # the second round's answers are in, its record is not
        (TrainingRun, "save", 2),  # the second epoch is trained, not saved
        (tuning, "save_image", 7),  # the last pictures are half written
    ]
    config = small(tmp_path / "run")
    for number, (owner, name, call) in enumerate(places):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, interrupted(call, getattr(owner, name)))
            with pytest.raises(KeyboardInterrupt):
                quickstart(dataclasses.replace(config, resume=number > 0))
        assert not (config.out / "metrics.json").exists()
    metrics = quickstart(dataclasses.replace(config, resume=True))
    assert timeless(metrics) == timeless(finished[1])


def test_killed_for_good_it_goes_on(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """SIGKILL, so that no `finally` tidies up: each time as soon as the next stage has begun."""
    config = small(tmp_path / "run")
    for mark in ("stages/rate-first.json", "ddpo/checkpoint.pt"):
        resumed = dataclasses.replace(config, resume=config.out.exists())
        program = f"from mmrlhf.quickstart.loop import *; from pathlib import *; quickstart({resumed!r})"
        program = program.replace("PosixPath", "Path")
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not (config.out / mark).exists() and process.poll() is None:
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        assert not (config.out / "metrics.json").exists()
    metrics = quickstart(dataclasses.replace(config, resume=True))
    assert timeless(metrics) == timeless(finished[1])


def test_a_first_write_that_was_cut_off_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.tmp").write_text("{")
    assert open_run(small(tmp_path / "run", resume=True)).folder == tmp_path / "run"


@pytest.mark.slow
def test_the_defaults_reach_what_the_quickstart_promises(tmp_path: Path) -> None:
    metrics = quickstart(QuickstartConfig(out=tmp_path / "run"))
    assert metrics["gold_gain_sd"] >= 0.5 and metrics["gold_gain_ci95"][0] > 0
    assert metrics["reward_agreement"] >= min(0.75, metrics["rater_agreement"] - 0.03)
    assert metrics["text_similarity_after"] >= 0.95 * metrics["text_similarity_before"]
    assert metrics["peak_rss_mib"] <= 4096


def test_another_seed_is_another_run(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    first = json.loads((finished[0] / "stages" / "generate.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "add_items", interrupted(1, Store.add_items))
        with pytest.raises(KeyboardInterrupt):
            quickstart(small(tmp_path / "run", seed=1))
    second = json.loads((tmp_path / "run" / "stages" / "generate.json").read_text())
    assert [row["prompt"] for row in first["train"]] != [row["prompt"] for row in second["train"]]


def test_gain_by_hand() -> None:
    rows = [
        {"gold_before": [0.0, 2.0], "gold_after": [1.0, 3.0]},
        {"gold_before": [1.0, 1.0], "gold_after": [4.0, 4.0]},
    ]
    spread = np.std([0.0, 2.0, 1.0, 1.0], ddof=1)
    found = gain(rows, seed=0)
    assert found["gold_before"] == 1.0 and found["gold_after"] == 3.0
    assert found["gold_gain_sd"] == pytest.approx((1 / spread + 3 / spread) / 2)
    assert found["gold_gain_ci95"] == pytest.approx([1 / spread, 3 / spread])


def test_folders_that_are_no_run_of_these_settings(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = finished
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        quickstart(small(folder))
    with pytest.raises(UserError, match="holds a run with other settings .epochs was 2, now 3"):
        quickstart(small(folder, epochs=3, resume=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is no quickstart run: choose an empty or new folder"):
        quickstart(small(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is no quickstart run"):
        quickstart(small(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tiny-sdd"}, "tiny-sdd"),
        ({"backbone": "nobody/nothing-here"}, "nobody/nothing-here"),
        ({"train_prompts": 5000}, "lower --train-prompts or --held-out-prompts"),
        ({"pairs": 0}, "--pairs got 0, allowed is"),
        ({"images_per_prompt": 1}, "--images-per-prompt got 1, allowed is"),
        ({"epochs": 0}, "--epochs got 0, allowed is"),
        ({"train_prompts": 2}, "--train-prompts got 2, allowed is"),
        ({"learning_rate": 0.0}, "--learning-rate got 0.0, allowed is"),
        ({"pairs": 500}, "--pairs got 500, allowed is up to 12"),
        ({"held_out_pairs": 16}, "--held-out-pairs got 16, allowed is up to 15"),
        ({"num_steps": 5000}, "5000"),
        ({"seed": -1}, "--seed got -1, allowed is 0 to"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        quickstart(small(tmp_path / "run", **change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_broken_files_of_a_run(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(finished[0], folder)
        for stage in ("rate-held-out", "reward", "fine-tune", "evaluate"):
            (folder / "stages" / f"{stage}.json").unlink()
        return folder

    store = copy("store")
    (store / "ratings.sqlite").write_bytes(b"no database" * 1000)
    for extra in store.glob("ratings.sqlite-*"):
        extra.unlink()
    with pytest.raises(UserError, match="ratings.sqlite"):
        quickstart(small(store, resume=True))
    record = copy("record")
    (record / "stages" / "generate.json").write_text("{")
    with pytest.raises(UserError, match="generate.json is broken: remove it"):
        quickstart(small(record, resume=True))
    settings = copy("settings")
    (settings / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is broken"):
        quickstart(small(settings, resume=True))


def test_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmrlhf", "quickstart", "--out", str(tmp_path / "run"), "--model", "absent-model"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("mmrlhf: error: ") and done.stderr.count("\n") == 1
