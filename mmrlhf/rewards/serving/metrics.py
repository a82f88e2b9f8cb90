"""What the server has done so far, counted, and written in the text format of Prometheus (version 0.0.4)."""

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Histogram:
    """How many values were at most each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.total = bounds, 0.0
        self.counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> Iterator[str]:
        """The samples: cumulative counts, then sum and count."""
        for bound, count in zip([*self.bounds, "+Inf"], itertools.accumulate(self.counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.total}"
        yield f"{name}_count {sum(self.counts)}"


class Metrics:
    """The counters of one server; any thread may count."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.images = self.failures = 0
        self.request_seconds, self.batch_seconds = Histogram(SECONDS), Histogram(SECONDS)
        self.batch_images = Histogram(SIZES)

    def request(self, path: str, status: int, seconds: float) -> None:
        """One request was answered."""
        with self.lock:
            self.requests[path, status] += 1
            self.request_seconds.add(seconds)

    def batch(self, size: int, seconds: float, scored: bool) -> None:
        """The reward was called once."""
        with self.lock:
            self.batch_images.add(float(size))
            self.batch_seconds.add(seconds)
            self.images += size * scored
            self.failures += not scored

    def text(self) -> str:
        """All of it, for Prometheus to read."""
        with self.lock:
            return "\n".join(self.lines()) + "\n"

    def lines(self) -> Iterator[str]:
        yield from head("mmrlhf_requests_total", "counter", "Requests answered.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'mmrlhf_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from head("mmrlhf_images_total", "counter", "Images scored.")
        yield f"mmrlhf_images_total {self.images}"
        yield from head("mmrlhf_reward_failures_total", "counter", "Calls of the reward that failed.")
        yield f"mmrlhf_reward_failures_total {self.failures}"
        yield from head("mmrlhf_batch_images", "histogram", "Images in a call of the reward.")
        yield from self.batch_images.lines("mmrlhf_batch_images")
        yield from head("mmrlhf_batch_seconds", "histogram", "Seconds of a call of the reward.")
        yield from self.batch_seconds.lines("mmrlhf_batch_seconds")
        yield from head("mmrlhf_request_seconds", "histogram", "Seconds from a request's head to its answer.")
        yield from self.request_seconds.lines("mmrlhf_request_seconds")


def head(name: str, kind: str, text: str) -> Iterator[str]:
    """The comments before a metric's samples."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
