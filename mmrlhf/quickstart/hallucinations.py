"""The vision-language half: answers about pictures, marks of what is wrong in them, Dense DPO on these, and what changed.

The pictures are scenes of emoji of which everything is known, so that the marks, and the figures, are the truth's.
"""

from pathlib import Path
from typing import Any

from mmrlhf.quickstart.run import Run
from mmrlhf.segments import SegmentedItem
from mmrlhf.types import SegmentLabel

SHOWN_ANSWERS = 8
MOST_TOKENS = 120
ADAPTER_SCALE = 0.6
"""How much of what was learnt is added when it answers: most of what it gained, little of what it forgot to name."""
BETA, IMITATION = 5.0, 3.0
"""How strongly the policy is held to the start (more than RLHF-V's, for the rate is far above theirs), and how much imitating the
corrected answers counts beside the comparison, so that it does not fall silent."""


def answer_scenes(run: Run) -> dict[str, Any]:
    """Scenes to learn from and others to measure on, and the model's answers about both as it is."""
    from mmrlhf.tiny.scene_files import write_scenes

    config = run.config
    for name, count in (("train", config.marked_answers), ("held-out", config.held_out_scenes)):
        write_scenes(folder(run) / name, count, seed=2 * config.seed + (name == "train"))
        answers(run, name, "before")
    return {"answers": config.marked_answers}


def mark_answers(run: Run) -> dict[str, Any]:
    """The simulated annotator, who sees the truth, marks each answer and writes what should stand there."""
    from mmrlhf.segments import read_segments
    from vlm.scenes import MarkConfig, mark

    file = folder(run) / "marked.jsonl"
    mark(MarkConfig(folder(run) / "train" / "before.jsonl", folder(run) / "train" / "scenes.jsonl", file))
    tags = [str(getattr(segment, "tag", "")) for item in read_segments(file) for segment in item.segments]
    return {"segments": len(tags), "misleading": tags.count("misleading")}


def learn_from_marks(run: Run) -> dict[str, Any]:
    """Dense Direct Preference Optimization on the corrected answers; goes on from its own checkpoints."""
    from vlm.dense_dpo import DenseDPOConfig, train

    config, out = run.config, folder(run) / "dense-dpo"
    result = train(DenseDPOConfig(
        model=config.vlm_model, data=folder(run) / "marked.jsonl", out=out, epochs=config.vlm_epochs, beta=BETA,
        learning_rate=config.vlm_learning_rate, sft_weight=IMITATION, gamma=config.gamma, seed=config.seed,
        resume=out.exists(),
    ))  # fmt: skip
    return {"epochs": result.metrics}


def evaluate_answers(run: Run) -> dict[str, Any]:
    """Answers about the held-out scenes before and after, drawn with the same seed: what is named that is not there."""
    from mmrlhf.tiny.scene_files import read_scenes
    from vlm.benchmarks.pooled import pooled
    from vlm.benchmarks.scenes import changes, counts, figures
    from vlm.scene_truth import SceneTruth
    from vlm.scenes import marked, read_responses

    answers(run, "held-out", "after")
    scenes = read_scenes(folder(run) / "held-out" / "scenes.jsonl")
    truth = SceneTruth(folder(run) / "held-out" / "scenes.jsonl")
    found: dict[str, dict[str, Any]] = {}
    for when in ("before", "after"):
        rows = read_responses(folder(run) / "held-out" / f"{when}.jsonl", keep_empty=True)
        counted = [counts(row.answer or "", scene) for (_, row), scene in zip(rows, scenes.values(), strict=True)]
        found[when] = {
            "figures": pooled(counted, figures, seed=run.config.seed),
            "counts": counted,
            "shown": [shown(run, marked(truth, name, row)) for name, row in rows[:SHOWN_ANSWERS]],
        }
    moved = changes(found["before"]["counts"], found["after"]["counts"], run.config.seed)
    return {when: {key: found[when][key] for key in ("figures", "shown")} for when in found} | {"changes": moved}


def figures_of(results: dict[str, Any]) -> dict[str, Any]:
    """The half's figures, flat, as `metrics.json` holds them."""
    evaluation = results["vlm-evaluate"]
    flat = {
        f"vlm_{name}_{when}": evaluation[when]["figures"][name]
        for name in ("chair_i", "chair_s", "coverage", "false_sentences", "length")
        for when in ("before", "after")
    }
    moved = evaluation["changes"]
    return flat | {
        "vlm_chair_i_change": moved["chair_i"][0],
        "vlm_chair_i_change_ci95": moved["chair_i"][1:],
        "vlm_coverage_change": moved["coverage"][0],
        "vlm_coverage_change_ci95": moved["coverage"][1:],
        "vlm_marked_answers": results["vlm-answer"]["answers"],
    }


def answers(run: Run, name: str, when: str) -> None:
    """Write the model's answers about the scenes of one folder, with what was learnt where it is after that."""
    from vlm.generate import GenerateConfig, generate

    out = folder(run) / name / f"{when}.jsonl"
    adapter = folder(run) / "dense-dpo" if when == "after" else None
    generate(GenerateConfig(
        run.config.vlm_model, folder(run) / name / "scenes.jsonl", out, batch_size=50, temperature=1.0,
        max_new_tokens=MOST_TOKENS, adapter=adapter, adapter_scale=ADAPTER_SCALE if adapter else 1.0,
        seed=run.config.seed, resume=True,
    ))  # fmt: skip


def shown(run: Run, item: SegmentedItem) -> dict[str, Any]:
    """An answer for the report: its picture, and its parts with their tags ("" for what is between them)."""
    assert item.answer is not None and item.image is not None
    parts, reached = [], 0
    for segment in item.segments:
        assert isinstance(segment, SegmentLabel)
        parts += [("", item.answer[reached : segment.start]), (segment.tag, item.answer[segment.start : segment.end])]
        reached = segment.end
    parts.append(("", item.answer[reached:]))
    picture = item.image.resolve().relative_to(run.folder.resolve()).as_posix()
    return {"image": picture, "parts": [part for part in parts if part[1]]}


def folder(run: Run) -> Path:
    """Where this half writes."""
    return run.folder / "vlm"
