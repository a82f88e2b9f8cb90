"""The reward that knows the truth of tiny-llava's scenes: what an annotator who sees everything would say of each sentence."""

from collections.abc import Sequence
from pathlib import Path

from mmrlhf.errors import UserError
from mmrlhf.rewards.language.inputs import Row
from mmrlhf.segments import tag_values
from mmrlhf.tiny.scene_files import read_scenes
from mmrlhf.tiny.scene_text import Marker
from vlm.answer_rewards import Judgement, SpanReward


class SceneTruth:
    """Each marked span is worth what its tag is: correct 1, irrelevant 0, misleading -1."""

    def __init__(self, scenes: Path) -> None:
        self.scenes = read_scenes(scenes)

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]:
        worth = tag_values()
        judgements = []
        for row in rows:
            assert row.answer is not None
            labels = self.marker(row).mark(row.answer, "")
            judgements.append(Judgement(tuple(SpanReward(each.start, each.end, worth[each.tag]) for each in labels)))
        return judgements

    def marker(self, row: Row) -> Marker:
        """Who marks the answers about a row's picture. UserError for a picture that is no known scene."""
        scene = self.scenes.get(row.image.resolve()) if isinstance(row.image, Path) else None
        if scene is None:
            raise UserError(f"{row.image} is no scene that is known: give its scenes.jsonl")
        return Marker(scene)
