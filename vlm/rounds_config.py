"""What `mmrlhf vlm rounds` can be told, and which values it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrlhf.config import check, check_seed
from vlm.worth_marking import Strategy

MAY_DIFFER = ("out", "rounds", "device", "micro_batch_size", "resume")
"""Options that a resumed run may change."""


@dataclass(frozen=True)
class RoundsConfig:
    """Rounds on a vision-language model: it answers, what is worth it is marked, it learns from the marks, and is measured.

    Each round the model of the round before answers. Dense Direct Preference Optimization and the reward for parts of answers,
    which chooses from the second round on, learn from all marks so far. The pictures are scenes of which the truth is known, as
    it is what measures the rounds, whoever marks.
    """

    out: Path
    """Folder for everything that the rounds write: metrics.jsonl, rounds.png, round-1/dense-dpo/model, round-1/reward …"""
    model: str = "tiny-llava"
    """The vision-language model to begin with: tiny-llava, a folder, or a hub id."""
    scenes: Path | None = None
    """The scenes.jsonl of pictures to ask about, with prompt and truth; None draws new ones each round."""
    held_out: int = 100
    """Scenes kept apart to measure on."""
    rounds: int = 3
    """How many; a run that is over goes on with more of them and --resume."""
    answers_per_round: int = 200
    """Answers that are marked each round."""
    pictures_per_round: int | None = None
    """Pictures that are asked about each round, of each of which at most one answer is marked; None is twice the answers, or all
    that --scenes leaves."""
    candidates_per_picture: int = 4
    """Answers drawn about each picture."""
    strategy: Strategy = "hallucination"
    """Which answers are marked: those of which the reward expects most parts to mislead; those whose sentences the other answers
    about the picture do not repeat (answers: the first round's way too, as there is no reward yet); those over whose parts the
    members of the reward differ most (heads); or random ones."""
    rater: Literal["simulated", "human"] = "simulated"
    """Who marks: an annotator who sees the truth of the scenes, or people, for whom the run stops each round."""
    temperature: float = 1.0
    """Of the answers that are marked, and of those that are measured."""
    max_new_tokens: int = 120
    """Where an answer is cut."""
    batch_size: int = 64
    """Questions answered at a time."""
    learn_from: Literal["first", "last"] = "first"
    """What a round's training begins with: the model before any round, on all marks so far (first), or that of the round before,
    on the round's own marks (last), which takes as long in each round and forgets more."""
    epochs: int = 3
    """Passes over the marked answers."""
    learning_rate: float = 4e-4
    """Of AdamW; for tiny-llava, that of a large model's LoRA is about a tenth."""
    beta: float = 5.0
    """How strongly a round's policy is held to the model that it begins with; more than RLHF-V's, as the rate is far above."""
    gamma: float = 5.0
    """How much more the corrected words count than the others."""
    sft_weight: float = 3.0
    """How much imitating the corrected answers counts beside the comparison; without, the model soon says less and less."""
    lora_rank: int = 16
    """Rank of a round's LoRA, which is merged into the model that it began with; 0 trains all weights."""
    adapter_scale: float = 0.6
    """How much of that LoRA is merged: less than 1 keeps more of what the model named before, for nearly the same gain."""
    train_batch_size: int = 32
    """Corrected answers an update."""
    micro_batch_size: int | None = None
    """Corrected answers that go through the model at once; None is all of an update's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    seed: int = 0
    """Same seed, same rounds."""
    resume: bool = False
    """Go on with a run that was stopped, or with one whose answers people have marked by now."""


def validate_rounds(config: RoundsConfig) -> None:
    """UserError for a value outside its range."""
    least = {"held_out": 2, "rounds": 1, "answers_per_round": 20, "max_new_tokens": 1, "batch_size": 1, "epochs": 1,
             "candidates_per_picture": 1 if config.strategy == "random" else 2, "lora_rank": 0, "temperature": 0,
             "sft_weight": 0, "train_batch_size": 1}  # fmt: skip
    for name, low in least.items():
        check(config, name, lambda value, low=low: value >= low, f"{low} or more")
    for name in ("learning_rate", "beta", "gamma", "adapter_scale"):
        check(config, name, lambda value: value > 0, "above 0")
    if config.micro_batch_size is not None:
        check(config, "micro_batch_size", lambda value: value >= 1, "1 or more, or leave it out")
    if config.pictures_per_round is not None:
        least_pictures = config.answers_per_round
        check(config, "pictures_per_round", lambda value: value >= least_pictures,
              f"{least_pictures} (--answers-per-round) or more, or leave it out")  # fmt: skip
    check_seed(config.seed)
