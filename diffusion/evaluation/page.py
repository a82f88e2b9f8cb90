"""The page of `mmrlhf diffusion eval`: tables, and the pictures side by side where a reward gained and lost most."""

from functools import cache
from pathlib import Path
from typing import Any

from mmrlhf.data import write_text
from mmrlhf.page import render, thumbnail_uri


def write_page(figures: dict[str, Any], rows: list[dict[str, Any]], out: Path, shown: int) -> None:
    """Write `out`/eval.html from what `evaluate` found and the rows of its scores.jsonl."""

    @cache  # a pair may be shown for several rewards
    def picture(name: str) -> str:
        return thumbnail_uri(out / name, side=256)

    sections = []
    for entry in figures["rewards"]:
        gains, losses = largest(rows, entry["name"], shown)
        sections.append({"name": entry["name"], "groups": [("largest gains", gains), ("largest losses", losses)]})
    write_text(render("before_after.html", f=figures, sections=sections, picture=picture), out / "eval.html")


def largest(rows: list[dict[str, Any]], reward: str, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The `count` pairs of the largest gain (largest first) and of the largest loss; pairs on which it abstained are neither.

    A row gets `before`, `after` and `gain` of this reward.
    """
    scored = []
    for row in rows:
        before, after = row["scores"][reward]
        if before is not None and after is not None:
            scored.append(row | {"before": before, "after": after, "gain": after - before})
    scored.sort(key=lambda row: row["gain"])
    losses = [row for row in scored[:count] if row["gain"] < 0]
    gains = [row for row in scored[len(scored) - min(count, len(scored)) :][::-1] if row["gain"] > 0]
    return gains, losses
