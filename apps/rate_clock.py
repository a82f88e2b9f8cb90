"""The times of a study: how long a question may take at most, how fast an answer is hasty, and when a break is due."""

import math
from dataclasses import dataclass
from typing import Any

from mmrlhf.errors import UserError


@dataclass(frozen=True)
class Clock:
    """Seconds a question, seconds below which an answer is hasty, and minutes until a break; 0 is without."""

    time_limit: float = 0.0
    min_seconds: float = 0.0
    session_minutes: float = 0.0

    def check(self) -> None:
        """UserError for times that cannot be."""
        for name in ("time_limit", "min_seconds", "session_minutes"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} got {value}, allowed is a time of 0 (without) or more")
        if self.time_limit and self.min_seconds >= self.time_limit:
            raise UserError(
                f"--min-seconds got {self.min_seconds:g}, allowed is less than --time-limit {self.time_limit:g}"
            )

    def for_page(self) -> dict[str, float]:
        """What the raters' pages have to know."""
        limits = {"time_limit": self.time_limit, "session_minutes": self.session_minutes}
        return {name: value for name, value in limits.items() if value}

    def flags(self, choice: str, seconds: float, timeout: bool) -> dict[str, Any]:
        """What is noted beside an answer: that it was hasty, or a skip because the time was over."""
        if choice == "skip":
            return {"timeout": True} if timeout and self.time_limit else {}
        return {"too_fast": True} if seconds < self.min_seconds else {}


NO_LIMITS = Clock()
