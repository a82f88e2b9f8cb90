"""What the quickstart reaches with several seeds: a Markdown table of their metrics.

make report && python benchmarks/quickstart_seeds.py runs/quickstart-*/metrics.json
"""

import json
import sys
from pathlib import Path
from typing import Any


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def change(metrics: dict[str, Any], name: str, unit: str) -> str:
    low, high = metrics[f"vlm_{name}_change_ci95"]
    return f"{metrics[f'vlm_{name}_change']:+.1f}{unit} ({low:+.1f} … {high:+.1f})"


ROWS = {
    "hidden taste, gain in standard deviations of the start": lambda m: f"{m['gold_gain_sd']:+.2f}",
    "its 95 % interval over held-out prompts": lambda m: "{:+.2f} … {:+.2f}".format(*m["gold_gain_ci95"]),
    "reward agrees with a rater": lambda m: percent(m["reward_agreement"]),
    "its 95 % interval": lambda m: "{:.1f} … {:.1f} %".format(*(100 * value for value in m["reward_agreement_ci95"])),
    "raters agree with each other": lambda m: percent(m["rater_agreement"]),
    "reward from as many random pairs": lambda m: percent(m["random_agreement"]),
    "calibration error before → after": lambda m: f"{m['ece_before']:.3f} → {m['ece_after']:.3f}",
    "image-text similarity": lambda m: f"{m['text_similarity_before']:.3f} → {m['text_similarity_after']:.3f}",
    "its change": lambda m: f"{100 * (m['text_similarity_after'] / m['text_similarity_before'] - 1):+.1f} %",
    "KL to the start, nats a sample": lambda m: f"{m['kl']:.1f}",
    "ratings trained on": lambda m: str(m["labels_used"]),
    "objects named that are not there (CHAIR_i)": lambda m: (
        f"{m['vlm_chair_i_before']:.1f} → {m['vlm_chair_i_after']:.1f} %"
    ),
    "its change, and 95 % interval over scenes": lambda m: change(m, "chair_i", " %"),
    "objects named of those that are there (coverage)": lambda m: (
        f"{m['vlm_coverage_before']:.1f} → {m['vlm_coverage_after']:.1f} %"
    ),
    "its change, points, and interval": lambda m: change(m, "coverage", ""),
    "answers marked": lambda m: str(m["vlm_marked_answers"]),
    "minutes": lambda m: f"{m['seconds_total'] / 60:.1f}",
    "peak memory": lambda m: f"{m['peak_rss_mib'] / 1024:.1f} GiB",
}


def table(runs: list[dict[str, Any]]) -> str:
    """A column a run, a row a figure."""
    lines = ["| seed | " + " | ".join(str(run["seed"]) for run in runs) + " |", "|---" * (len(runs) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(show(run) for run in runs) + " |" for name, show in ROWS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))
