"""`mmrlhf vlm rounds`: a vision-language model answers, what is worth it is marked, it learns from the marks, again and again.

Each stage of a round writes a file or folder that appears whole, and is skipped where that is there: so a killed run goes on at
the first unfinished stage, and ends as if it had never been killed.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrlhf.config import MAX_SEED
from mmrlhf.data import relative, replacing, write_jsonl, write_text
from mmrlhf.errors import UserError
from mmrlhf.page import new_figure
from mmrlhf.runs import METRICS, check_folder, claim_folder, settings, write_metrics
from mmrlhf.seeding import seeded
from mmrlhf.segments import SegmentedItem, read_segments, write_segments
from mmrlhf.tiny.scene_files import FILE, scene_rows, write_scenes
from vlm import dense_dpo, reward
from vlm.benchmarks.scenes import measured
from vlm.generate import GenerateConfig, generate, read_questions
from vlm.loading import load_adapter, load_model, save_model
from vlm.policy import VisionLanguagePolicy
from vlm.rounds_config import MAY_DIFFER, RoundsConfig, validate_rounds
from vlm.scenes import MarkConfig, mark, read_responses
from vlm.segment_reward import HallucinationReward
from vlm.worth_marking import answers_worth, choose, questions_of

__all__ = ["RoundsConfig", "rounds"]

PICTURES, CANDIDATES, CHOSEN, MEASURED = range(4)
"""What is drawn, to tell the seeds apart."""


def rounds(config: RoundsConfig) -> list[dict[str, Any]]:
    """Every round; a line of figures each, that of the model before any of them first. Fewer where people have to mark first.

    UserError for settings or scenes that are not allowed, before anything is written.
    """
    validate_rounds(config)
    import matplotlib  # noqa: F401  # so that nobody waits an hour to hear that it is missing

    scenes = None if config.scenes is None else config.scenes.resolve()
    # the same names, from wherever a stopped run is taken up
    config = replace(config, out=config.out.resolve(), scenes=scenes)
    check_scenes(config)
    wanted = settings(config, [] if scenes is None else scenes.read_text(encoding="utf-8").splitlines())
    check_folder(config.out, wanted, resume=config.resume, may_differ=MAY_DIFFER)
    VisionLanguagePolicy.load(config.model, device=config.device)
    claim_folder(config.out, wanted)
    metrics: list[dict[str, Any]] = []
    for number in range(config.rounds + 1):
        if number and not learnt(config, number):
            return metrics
        metrics.append(evaluated(config, number))
        write_metrics(config.out, metrics)
        plot(metrics, config.out / "rounds.png")
    print(headline(metrics, config.out))
    return metrics


def learnt(config: RoundsConfig, number: int) -> bool:
    """The stages of a round up to its model. False where people have to mark its answers first."""
    folder = folder_of(config, number)
    stage(folder, f"pictures/{FILE}", lambda: set_out(config, number))
    stage(folder, "candidates.jsonl", lambda: answer(config, number, samples=config.candidates_per_picture))
    stage(folder, "to_mark.jsonl", lambda: choose_answers(config, number))
    if config.rater == "human" and not (folder / "marked.jsonl").exists():
        print(
            f"mark the answers in {folder / 'to_mark.jsonl'}, put what is marked (segments with corrections, an answer a line) "
            f"beside it as marked.jsonl, and run this command again with --resume"
        )
        return False
    truth = pictures_of(config, number)
    stage(folder, "marked.jsonl", lambda: mark(MarkConfig(folder / "to_mark.jsonl", truth, folder / "marked.jsonl")))
    stage(folder, "marks-so-far.jsonl", lambda: gather_marks(config, number))
    stage(folder, "reward/report.html", lambda: learn_reward(config, number))
    stage(folder, "dense-dpo/model", lambda: learn(config, number))
    return True


def evaluated(config: RoundsConfig, number: int) -> dict[str, Any]:
    """A round's line: what its model says of the held-out scenes. Round 0 is the model before any."""
    folder = folder_of(config, number)
    stage(pictures_of(config, 0).parent, FILE, lambda: set_out(config, 0))
    stage(folder, "held-out.jsonl", lambda: answer(config, number, held_out=True))
    stage(folder, "figures.json", lambda: measure(config, number))
    line = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return line | {"seconds": sum(seconds_of(folder).values())}


def stage(folder: Path, name: str, work: Callable[[], None]) -> None:
    """Do the work that makes FOLDER/name, unless it is there; how long it took is kept in seconds.json."""
    if (folder / name).exists():
        return
    print(f"── {folder.name}: {name}", flush=True)
    began = time.perf_counter()
    work()
    spent = seconds_of(folder) | {name: time.perf_counter() - began}
    write_text(json.dumps(spent, indent=1) + "\n", folder / "seconds.json")


def seconds_of(folder: Path) -> dict[str, float]:
    """What the finished stages of a folder took."""
    file = folder / "seconds.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def check_scenes(config: RoundsConfig) -> None:
    """UserError where the given scenes are none, or too few to mark and to measure on."""
    if config.scenes is None:
        return
    known, asked = len(read_questions(config.scenes, None)), config.pictures_per_round or config.answers_per_round
    scene_rows(config.scenes)
    if known < asked + config.held_out:
        raise UserError(
            f"--scenes {config.scenes} has {known} scenes, allowed are {asked + config.held_out} or more ({asked} to ask about, "
            f"{config.held_out} held out): give more, or lower --answers-per-round, --pictures-per-round or --held-out"
        )


def set_out(config: RoundsConfig, number: int) -> None:
    """Write the pictures that a round asks about, with their truth; number 0 are the held-out ones.

    Of given scenes each round takes the next ones, and the first again when all were asked about.
    """
    file = pictures_of(config, number)
    count = config.pictures_per_round or 2 * config.answers_per_round
    if config.scenes is None:
        write_scenes(file.parent, count if number else config.held_out, seed=seed_of(config, PICTURES, number))
        return
    given = read_questions(config.scenes, None)
    order = torch.randperm(len(given), generator=seeded(config.seed, PICTURES)).tolist()
    held_out, rest = order[: config.held_out], order[config.held_out :]
    count = min(count, len(rest))
    places = [rest[i % len(rest)] for i in range((number - 1) * count, number * count)] if number else held_out
    rows = [(columns, row.image) for columns, row in (given[i] for i in places)]
    write_jsonl(
        [columns | {"image": relative(image, file)} for columns, image in rows if isinstance(image, Path)], file
    )


def answer(config: RoundsConfig, number: int, *, samples: int = 1, held_out: bool = False) -> None:
    """Answers of the round before about the round's pictures, or those of the round's model about the held-out ones.

    All rounds answer about the held-out pictures with the same seed.
    """
    out = folder_of(config, number) / ("held-out.jsonl" if held_out else "candidates.jsonl")
    seed = seed_of(config, MEASURED, 0) if held_out else seed_of(config, CANDIDATES, number)
    generate(GenerateConfig(
        model_of(config, number if held_out else number - 1), pictures_of(config, 0 if held_out else number), out,
        batch_size=config.batch_size, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
        samples=samples, device=config.device, seed=seed, resume=True,
    ))  # fmt: skip


def choose_answers(config: RoundsConfig, number: int) -> None:
    """Write to_mark.jsonl: the answers that are worth marking, the most worthy first, as `mmrlhf vlm mark` reads them."""
    folder = folder_of(config, number)
    answers = read_responses(folder / "candidates.jsonl")
    rows = [row for _, row in answers]
    judge = None
    if strategy_of(config, number) in ("hallucination", "heads"):
        judge = HallucinationReward.load(folder_of(config, number - 1) / "reward", device=config.device)
    generator = seeded(config.seed, CHOSEN, number)
    worth = answers_worth(strategy_of(config, number), rows, judge, generator)
    file = folder / "to_mark.jsonl"
    chosen = [answers[i] for i in choose(worth, questions_of(rows), config.answers_per_round)]
    write_jsonl([
        {"id": f"round-{number}-{name}", "prompt": row.prompt, "image": relative(row.image, file), "response": row.answer}
        for name, row in chosen if isinstance(row.image, Path)
    ], file)  # fmt: skip


def gather_marks(config: RoundsConfig, number: int) -> None:
    """Write the marks of all rounds so far in one file. UserError where those of this one are of other answers."""
    folder = folder_of(config, number)
    asked = {(row.prompt, row.answer, str(row.image)) for _, row in read_responses(folder / "to_mark.jsonl")}
    for item in read_segments(folder / "marked.jsonl"):
        if (item.prompt, item.answer, str(item.image)) not in asked:
            raise UserError(
                f"{folder / 'marked.jsonl'}: item {item.item!r:.60} is of an answer that is not in to_mark.jsonl: give the "
                "marks of those, with their prompt, image and answer as they are there"
            )
    items = [item for i in range(1, number + 1) for item in read_segments(folder_of(config, i) / "marked.jsonl")]
    write_segments(items, folder / "marks-so-far.jsonl")


def learn_reward(config: RoundsConfig, number: int) -> None:
    """The reward for the parts of answers, from all marks so far; the model before any round reads them.

    What people leave unmarked is correct.
    """
    folder = folder_of(config, number)
    shutil.rmtree(folder / "reward", ignore_errors=True)  # one that was cut off
    reward.train(reward.RewardConfig(
        config.model, folder / "marks-so-far.jsonl", folder / "reward", unmarked_correct=config.rater == "human",
        device=config.device, seed=config.seed,
    ))  # fmt: skip


def learn(config: RoundsConfig, number: int) -> None:
    """Dense Direct Preference Optimization on the marks; its LoRA is merged into the model that it begins with."""
    folder, all_marks = folder_of(config, number), config.learn_from == "first"
    before, data = (
        model_of(config, 0 if all_marks else number - 1),
        "marks-so-far.jsonl" if all_marks else "marked.jsonl",
    )
    out = folder / "dense-dpo"
    dense_dpo.train(dense_dpo.DenseDPOConfig(
        before, out, data=folder / data, epochs=config.epochs, learning_rate=config.learning_rate,
        beta=config.beta, gamma=config.gamma, sft_weight=config.sft_weight, lora_rank=config.lora_rank,
        train_batch_size=config.train_batch_size, micro_batch_size=config.micro_batch_size, too_long="drop",
        device=config.device, seed=config.seed, resume=True,
    ))  # fmt: skip
    if config.lora_rank:
        network, processor = load_model(before, "float32", torch.device("cpu"))
        save_model(load_adapter(network, out, merge=True, scale=config.adapter_scale), processor, out / "model")


def measure(config: RoundsConfig, number: int) -> None:
    """Write a round's figures: of the held-out answers, of what was marked, and of the reward."""
    folder = folder_of(config, number)
    texts = [row.answer or "" for _, row in read_responses(folder / "held-out.jsonl", keep_empty=True)]
    scenes = [scene for _, scene in scene_rows(pictures_of(config, 0))]
    line: dict[str, Any] = {"round": number, "strategy": "", "marked": 0, "misleading_marks": 0}
    if number:
        own = read_segments(folder / "marked.jsonl")
        judged = json.loads((folder / "reward" / "metrics.json").read_text(encoding="utf-8"))
        line |= {"strategy": strategy_of(config, number), "marked": len(read_segments(folder / "marks-so-far.jsonl")),
                 "misleading_marks": misleading(own), "reward_auroc": judged["auroc"],
                 "reward_auroc_ci95": judged["auroc_ci95"]}  # fmt: skip
    write_text(json.dumps(line | measured(texts, scenes, config.seed), indent=1) + "\n", folder / "figures.json")


def misleading(items: Sequence[SegmentedItem]) -> int:
    """How many spans were marked as misleading."""
    return sum(getattr(segment, "tag", "") == "misleading" for item in items for segment in item.segments)


def plot(metrics: Sequence[dict[str, Any]], file: Path) -> None:
    """A picture: CHAIR_i and coverage of the held-out answers over marked answers, with 95 % intervals."""
    figure, axes = new_figure((9.0, 3.6), columns=2)
    marked = [line["marked"] for line in metrics]
    names = {
        "chair_i": "CHAIR_i: named objects that are not there, %",
        "coverage": "coverage: objects that are named, %",
    }
    for axis, (name, words) in zip(axes, names.items(), strict=True):
        values = np.array([line[name] for line in metrics], dtype=float)
        ends = np.array([line[f"{name}_ci95"] or (np.nan, np.nan) for line in metrics], dtype=float).T
        axis.errorbar(marked, values, yerr=np.abs(ends - values), marker="o", capsize=3)
        axis.set_title(words, fontsize=10)
        axis.set_xlabel("marked answers")
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def headline(metrics: Sequence[dict[str, Any]], out: Path) -> str:
    """The rounds in a line."""
    said = [f"{words} {' → '.join(percent(line[name]) for line in (metrics[0], metrics[-1]))} %"
            for name, words in (("chair_i", "named objects that are not there"), ("coverage", "objects named"))]  # fmt: skip
    return f"{metrics[-1]['marked']} marked answers: {'; '.join(said)}; see {out / METRICS} and rounds.png"


def percent(value: float | None) -> str:
    """A figure that may not be defined."""
    return "–" if value is None else f"{value:.1f}"


def strategy_of(config: RoundsConfig, number: int) -> Any:
    """How a round chooses: the first has no reward yet."""
    return "answers" if number == 1 and config.strategy != "random" else config.strategy


def seed_of(config: RoundsConfig, what: int, number: int) -> int:
    """A seed for one use in one round, unrelated to that of any other."""
    return int(torch.randint(MAX_SEED, (), generator=seeded(config.seed, what, number)))


def folder_of(config: RoundsConfig, number: int) -> Path:
    """Where a round writes."""
    return config.out / f"round-{number}"


def pictures_of(config: RoundsConfig, number: int) -> Path:
    """The scenes.jsonl of a round; 0 is that of the held-out ones."""
    return (folder_of(config, number) / "pictures" if number else config.out / "held-out") / FILE


def model_of(config: RoundsConfig, number: int) -> str:
    """The model that a round ends with; 0 is that before any."""
    return str(folder_of(config, number) / "dense-dpo" / "model") if number else config.model
