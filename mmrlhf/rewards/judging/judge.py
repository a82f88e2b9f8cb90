"""`mmrlhf reward judge`: an AI rater answers the pairs in a store (RLAIF), each in both orders, and is compared with people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.config import exactly_one
from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.models import pick_device
from mmrlhf.rewards.judging.pairs import queued, read_listed, register
from mmrlhf.rewards.judging.report import agreement_with, position_bias
from mmrlhf.rewards.judging.verdicts import Judge, RewardJudge, judge_tasks
from mmrlhf.rewards.judging.vlm_judge import LEAST_ANSWER, QUESTION, VLMJudge, check_temperature
from mmrlhf.rewards.score import check_output, load_on
from mmrlhf.store import Store, store_exists


@dataclass(frozen=True)
class JudgeConfig:
    """Let a reward or a vision-language model judge pairs; killed and started again, it goes on where it was."""

    store: str
    """sqlite:///FILE, a path or postgresql://USER@HOST/NAME: what `mmrlhf rate` uses. The verdicts go there, with source "ai"."""
    reward: str | None = None
    """Judge by a reward (name, folder, …): P(first) = sigmoid of the difference of the scores / temperature."""
    vlm: str | None = None
    """Or by a vision-language model, asked A or B: folder or hub id."""
    data: Path | None = None
    """PAIRS.jsonl to judge; without, the pairs that are queued in the store."""
    name: str | None = None
    """The judge's name as an annotator; default ai- and the model. Give a new version a new name: nothing is judged twice."""
    temperature: float = 1.0
    """What differences of scores, or the log-odds of A and B, are divided by."""
    tie_threshold: float = 0.0
    """Call it a tie where |2p - 1| is at most this."""
    overlap: int | None = None
    """Of the queued pairs, judge only those with fewer votes than this; all without."""
    question: str = QUESTION
    """What a vision-language model is asked; {prompt} is where the prompt goes."""
    least_answer: float = LEAST_ANSWER
    """It abstains from a pair where its next word is A or B with less than this probability; 0 takes any answer."""
    batch_size: int = 8
    """Pairs judged at a time; their verdicts are saved together."""
    seed: int = 0
    """Of the bootstrap."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    out: Path | None = None
    """JSON file for agreement with people and position bias."""


def judge(config: JudgeConfig) -> dict[str, Any]:
    """Judge what is not judged yet, compare with people, return the figures."""
    check_config(config)
    listed = None if config.data is None else read_listed(config.data)
    if listed is None and not store_exists(config.store):
        raise UserError(f"no store at {config.store}: give the one that `mmrlhf rate` made, or pairs with --data")
    rater, name = load_judge(config), judge_name(config)
    store = Store(config.store)
    try:
        check_name(store, name)
        if listed is None:
            paths, tasks = queued(store, name, config.overlap)
        else:
            paths, tasks = listed[0], register(store, name, *listed[:2])
        new, abstained = judge_tasks(rater, store, tasks, paths, name=name, tie_threshold=config.tie_threshold,
                                     batch_size=config.batch_size)  # fmt: skip
        preferences = store.preferences()
    finally:
        store.close()
    verdicts = [p for p in preferences if p.annotator == name]
    people = {source: [p for p in preferences if p.source == source] for source in ("human", "simulated")}
    people["data"] = [] if listed is None else listed[2]
    agreement = {source: agreement_with(verdicts, answers, seed=config.seed) for source, answers in people.items()}
    figures = {
        "judge": name,
        "judged": new,
        "judged_before": len(verdicts) - new,
        "abstained": abstained,
        "ties": sum(p.label == 0.5 for p in verdicts),
        "position": position_bias(verdicts, seed=config.seed),
        "agreement": {source: found for source, found in agreement.items() if found},
    }
    if config.out is not None:
        write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", config.out)
    print(f"{summary(figures)}: {store.name}" + (f", {config.out}" if config.out else ""))
    return figures


def load_judge(config: JudgeConfig) -> Judge:
    """The reward or the vision-language model that the config names."""
    if config.vlm is not None:
        return VLMJudge.from_pretrained(
            config.vlm, device=str(pick_device(config.device)), question=config.question, temperature=config.temperature,
            least_answer=config.least_answer,
        )  # fmt: skip
    return RewardJudge(load_on(str(config.reward), config.device), config.temperature)


def judge_name(config: JudgeConfig) -> str:
    """The annotator's name."""
    return config.name or f"ai-{str(config.vlm or config.reward).rstrip('/')}"


def check_name(store: Store, name: str) -> None:
    """UserError where somebody else has answered by this name."""
    if any(p.annotator == name and p.source != "ai" for p in store.preferences()):
        raise UserError(f"--name got '{name}', which is a rater in {store.name} who is no AI: give another name")


def check_config(config: JudgeConfig) -> None:
    """UserError for what no judge can be made of, before any work."""
    exactly_one(reward=config.reward, vlm=config.vlm)
    check_temperature(config.temperature)
    for option, share in (("tie-threshold", config.tie_threshold), ("least-answer", config.least_answer)):
        if not 0 <= share <= 1:
            raise UserError(f"--{option} got {share}, allowed is from 0 to 1")
    for option, value in (("batch-size", config.batch_size), ("overlap", config.overlap)):
        if value is not None and value < 1:
            raise UserError(f"--{option} got {value}, allowed is 1 or more")
    if config.out is not None:
        check_output(config.out)


def summary(figures: Mapping[str, Any]) -> str:
    """The figures in words."""
    notes = [f"{figures[key]} {words}" for key, words in (("judged_before", "before"), ("abstained", "abstained"))]
    text = f"{figures['judged']} pairs judged by {figures['judge']} ({', '.join(notes)})"
    if position := figures["position"]:
        text += f"; P(left) {position['p_left']:.3f}, {position['flipped']:.0%} turn with the order"
    for source, found in figures["agreement"].items():
        text += f"; agrees with {found['answers']} {source} answers {found['agreement']:.3f}"
        if found["ci95"] is not None:
            text += " (95% {:.3f} … {:.3f})".format(*found["ci95"])
        if found["among_themselves"] is not None:
            text += f", they with each other {found['among_themselves']:.3f}"
    return text
