"""The text of the metrics, read back as Prometheus reads it."""

import re

import pytest

from mmrlhf.rewards.serving.metrics import Metrics

SAMPLE = re.compile(r'([a-z_]+)(\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})? (\S+)')


def samples(text: str) -> dict[str, float]:
    """Name and labels → value; each line a comment or a sample."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|histogram))", line), line
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_counts_and_histograms() -> None:
    metrics = Metrics()
    for status, seconds in ((200, 0.002), (200, 0.3), (401, 100.0)):
        metrics.request("/score", status, seconds)
    metrics.batch(1, 0.004, True)
    metrics.batch(64, 0.004, True)
    metrics.batch(300, 0.004, False)
    text = metrics.text()
    assert text.endswith("\n")
    found = samples(text)
    assert found['mmrlhf_requests_total{path="/score",status="200"}'] == 2
    assert found['mmrlhf_requests_total{path="/score",status="401"}'] == 1
    assert found["mmrlhf_images_total"] == 65 and found["mmrlhf_reward_failures_total"] == 1
    assert found["mmrlhf_request_seconds_count"] == 3 and found["mmrlhf_request_seconds_sum"] == pytest.approx(100.302)
    buckets = [found[f'mmrlhf_batch_images_bucket{{le="{size}"}}'] for size in (1.0, 2.0, 32.0, 64.0, 256.0, "+Inf")]
    assert buckets == [1, 1, 1, 2, 2, 3]
    assert [found[f'mmrlhf_request_seconds_bucket{{le="{bound}"}}'] for bound in (0.001, 0.0025, 30.0)] == [0, 1, 2]
    assert found["mmrlhf_batch_seconds_sum"] == pytest.approx(0.012)


def test_before_anything_happened() -> None:
    found = samples(Metrics().text())
    assert found["mmrlhf_images_total"] == 0 and found['mmrlhf_batch_images_bucket{le="+Inf"}'] == 0
