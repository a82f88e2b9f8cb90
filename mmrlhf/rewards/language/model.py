"""The reward that reads: a language model scores an answer, a vision-language model also looks at the image."""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.models import quiet_loading
from mmrlhf.rewards.clip import SETTINGS
from mmrlhf.rewards.language.inputs import Reader, Row
from mmrlhf.rewards.language.network import ScoreNetwork, load_network, with_rows
from mmrlhf.rewards.saved import saved_settings
from mmrlhf.types import Images

FORMAT, KIND = 1, "language"
CHUNK = 16  # rows read at a time

SomeImages = Images | Sequence[Float[Tensor, "3 _ _"] | None]


class LanguageReward:
    """Scores answers to prompts, about images where there are; or, called as every Reward, images for prompts.

    `criteria` names the rows of the head; the score is the first's, divided by `temperature`, so that σ(difference) is the
    probability of being preferred. A pair counts as a tie where |2p − 1| ≤ `tie_threshold`. Row-independent, picklable. A row
    that is too long for a reward that drops such rows gets NaN.
    """

    differentiable = False

    def __init__(
        self,
        network: ScoreNetwork,
        reader: Reader,
        *,
        criteria: Sequence[str] = ("",),
        needs_image: bool = False,
        temperature: float = 1.0,
        tie_threshold: float = 0.0,
    ) -> None:
        self.network, self.reader, self.criteria, self.needs_image = network, reader, tuple(criteria), needs_image
        self.temperature, self.tie_threshold = temperature, tie_threshold

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        criteria: Sequence[str] = ("",),
        template: str | None = None,
        max_length: int | None = None,
        too_long: str = "refuse",
        dtype: str = "float32",
        seed: int = 0,
    ) -> "LanguageReward":
        """A folder or hub id of a language or vision-language model: its own head (a reward model's), else a fresh one.

        A head that is there is the criterion ""; `criteria` that it lacks get fresh rows after it, made from `seed`. A folder
        that `save` wrote goes on as it is, with its template. UserError for what is none of these.
        """
        if (Path(model) / SETTINGS).is_file():
            reward = cls.load(model, dtype=dtype)
        else:
            network, processor, has_head = load_network(model, dtype=dtype, seed=seed)
            reader = Reader.make(
                processor, network.backbone.config, template=template, max_length=max_length, too_long=too_long
            )
            reward = cls(network, reader, criteria=("",) if has_head else tuple(criteria)[:1])
        missing = [name for name in criteria if name not in reward.criteria]
        if missing:
            reward.criteria += tuple(missing)
            reward.network.head = with_rows(reward.network.head, len(reward.criteria), seed)
        return reward

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """How well each image fits its prompt."""
        return self.score(prompts, images=images)

    def score(
        self, prompts: Sequence[str], answers: Sequence[str] | None = None, images: SomeImages | None = None
    ) -> Float[Tensor, " b"]:
        """The first criterion's score; see `scores`."""
        return self.scores(prompts, answers, images)[0]

    @torch.no_grad()
    def scores(
        self, prompts: Sequence[str], answers: Sequence[str] | None = None, images: SomeImages | None = None
    ) -> Float[Tensor, "k b"]:
        """Each criterion's score of each answer (without answers: of each prompt), on the device of the images, else the CPU."""
        rows = self.rows(prompts, answers, images)
        device = images.device if isinstance(images, Tensor) else torch.device("cpu")
        fitted, kept = self.reader.fitted(rows)
        found = torch.full((len(self.criteria), len(rows)), torch.nan, device=device)
        for start in range(0, len(kept), CHUNK):
            part = self.network(self.reader.encode(fitted[start : start + CHUNK])) / self.temperature
            found[:, kept[start : start + CHUNK]] = part.T.to(device)
        return found

    def rows(self, prompts: Sequence[str], answers: Sequence[str] | None, images: SomeImages | None) -> list[Row]:
        """The rows to read. UserError where counts differ or an image is there for a model without eyes, or is missing."""
        told = [None] * len(prompts) if answers is None else list(answers)
        shown = [None] * len(prompts) if images is None else list(images)
        if not len(prompts) == len(told) == len(shown):
            raise UserError(
                f"got {len(prompts)} prompts, {len(told)} answers and {len(shown)} images: give as many of each"
            )
        rows = [Row(*parts) for parts in zip(prompts, told, shown, strict=True)]
        self.check_images(rows)
        return rows

    def check_images(self, rows: Sequence[Row]) -> None:
        """UserError where an image is there for a model that reads text only, or is missing where every example had one."""
        if not self.network.sees_images and any(row.image is not None for row in rows):
            raise UserError(
                f"got images for a {type(self.network.backbone).__name__}, which reads text only: give a vision-language model"
            )
        blind = sum(row.image is None for row in rows)
        if self.needs_image and blind:
            raise UserError(
                f"{blind} of {len(rows)} rows have no image, and this reward learnt from images: give one a row"
            )

    def with_temperature(self, temperature: float, tie_threshold: float | None = None) -> "LanguageReward":
        """The same reward (weights shared) at another temperature."""
        if not 0 < temperature < float("inf"):
            raise UserError(f"temperature got {temperature}, allowed is a finite number above 0")
        other = copy.copy(self)
        other.temperature = float(temperature)
        other.tie_threshold = self.tie_threshold if tie_threshold is None else float(tie_threshold)
        return other

    def to(self, device: torch.device | str) -> "LanguageReward":
        """Move the weights; returns itself."""
        self.network.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        """What reward.json holds."""
        reader = self.reader
        return {"format": FORMAT, "kind": KIND, "temperature": self.temperature, "tie_threshold": self.tie_threshold,
                "criteria": list(self.criteria), "needs_image": self.needs_image, "template": reader.template,
                "max_length": reader.max_length, "too_long": reader.too_long}  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write the model, its tokenizer or processor, the head and reward.json; other files there stay.

        A text model's folder is one of AutoModelForSequenceClassification. reward.json goes first and comes back last: a folder
        with it is whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".reward-", suffix=".tmp") as temporary:
            self.network.save(Path(temporary), self.criteria)
            with quiet_loading():
                self.reader.processor.save_pretrained(temporary)
            (folder / SETTINGS).unlink(missing_ok=True)
            for file in Path(temporary).iterdir():
                if (folder / file.name).is_dir():
                    shutil.rmtree(folder / file.name)
                os.replace(file, folder / file.name)
        self.save_settings(folder)

    def save_settings(self, folder: Path) -> None:
        """Rewrite reward.json only (temperature and tie threshold)."""
        write_text(json.dumps(self.settings(), indent=2, ensure_ascii=False) + "\n", folder / SETTINGS)

    @classmethod
    def load(cls, folder: Path | str, *, dtype: str = "float32") -> "LanguageReward":
        """What `save` wrote. UserError where the folder holds no whole reward."""
        folder = Path(folder)
        with saved_settings(folder / SETTINGS, FORMAT, KIND) as settings:
            names = [str(name) for name in settings["criteria"]]
            network, processor, _ = load_network(folder, dtype=dtype, rows=len(names))
            how = {name: settings[name] for name in ("template", "max_length", "too_long")}
            reward = cls(network, Reader(processor, **how), criteria=names, needs_image=bool(settings["needs_image"]),
                         tie_threshold=float(settings["tie_threshold"]))  # fmt: skip
            return reward.with_temperature(float(settings["temperature"]))
