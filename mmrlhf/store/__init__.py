"""The annotation store: questions and people's answers, append-only, in SQLite or PostgreSQL."""

from mmrlhf.store.database import store_exists, store_name
from mmrlhf.store.records import (
    Answer,
    Item,
    Judgement,
    Kind,
    LikertJudgement,
    Point,
    PointJudgement,
    Progress,
    RankJudgement,
    SegmentJudgement,
    Task,
    Veto,
    task_key,
)
from mmrlhf.store.store import Store, open_existing
from mmrlhf.types import Preference

__all__ = [
    "Answer",
    "Item",
    "Judgement",
    "Kind",
    "LikertJudgement",
    "Point",
    "PointJudgement",
    "Preference",
    "Progress",
    "RankJudgement",
    "SegmentJudgement",
    "Store",
    "Task",
    "Veto",
    "open_existing",
    "store_exists",
    "store_name",
    "task_key",
]
