"""The whole loop once: generate, select, rate, learn a reward, fine-tune, evaluate, report.

Each stage reads what the stages before it left in the folder and writes its own result there, so that a killed run goes on
with `--resume` and ends as if it had never been killed.
"""

import time
from collections.abc import Callable
from typing import Any

from mmrlhf.quickstart.candidates import generate_candidates, split_prompts
from mmrlhf.quickstart.hallucinations import (
    answer_scenes,
    evaluate_answers,
    figures_of,
    learn_from_marks,
    mark_answers,
)
from mmrlhf.quickstart.learning import learn_reward
from mmrlhf.quickstart.rating import check_port, rate_first_pairs, rate_held_out_pairs, rate_second_pairs
from mmrlhf.quickstart.report import write_report
from mmrlhf.quickstart.run import (
    QuickstartConfig,
    Run,
    check_models,
    check_settings,
    open_run,
    peak_rss_mib,
    read_json,
    write_json,
)
from mmrlhf.quickstart.tuning import evaluate, fine_tune, gain, mean_of

__all__ = ["QuickstartConfig", "quickstart"]


Stage = Callable[[Run], dict[str, Any]]
DIFFUSION: dict[str, Stage] = {
    "generate": generate_candidates,
    "rate-first": rate_first_pairs,
    "rate-second": rate_second_pairs,
    "rate-held-out": rate_held_out_pairs,
    "reward": learn_reward,
    "fine-tune": fine_tune,
    "evaluate": evaluate,
}
VLM: dict[str, Stage] = {
    "vlm-answer": answer_scenes,
    "vlm-mark": mark_answers,
    "vlm-fine-tune": learn_from_marks,
    "vlm-evaluate": evaluate_answers,
}


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Run every stage, write `report.html` and `metrics.json`, and return the metrics."""
    began = time.perf_counter()
    check_settings(config)
    if config.only != "vlm":
        split_prompts(config)
        check_port(config)
    check_models(config)
    run = open_run(config)
    before = sum(read_json(path)["seconds"] for path in (run.folder / "stages").glob("*.json"))
    stages = {"diffusion": DIFFUSION, "vlm": VLM, "both": DIFFUSION | VLM}[config.only]
    results = {name: run.stage(name, work) for name, work in stages.items()}
    metrics = collect_metrics(run, results)
    metrics["seconds_total"] = before + time.perf_counter() - began
    report = write_report(run.folder, metrics, results)
    write_json(metrics, run.folder / "metrics.json")
    print(headline(metrics))
    print(f"report: {report}")
    return metrics


def headline(metrics: dict[str, Any]) -> str:
    """The run in a line: the hidden taste where the raters were simulated, else what was learnt from the person; and CHAIR."""
    said = []
    if "gold_before" in metrics and metrics["rater"] == "human":
        said.append(
            f"learned reward {metrics['reward_before']:+.2f} → {metrics['reward_after']:+.2f} on held-out prompts"
        )
    elif "gold_before" in metrics:
        low, high = metrics["gold_gain_ci95"]
        said.append(
            f"gold {metrics['gold_before']:+.2f} → {metrics['gold_after']:+.2f} "
            f"({metrics['gold_gain_sd']:+.2f} sd, 95% {low:+.2f} … {high:+.2f})"
        )
    if "vlm_chair_i_before" in metrics:
        low, high = metrics["vlm_chair_i_change_ci95"]
        said.append(
            f"named objects that are not there {metrics['vlm_chair_i_before']:.1f} → {metrics['vlm_chair_i_after']:.1f} % "
            f"({metrics['vlm_chair_i_change']:+.0f} %, 95% {low:+.0f} … {high:+.0f})"
        )
    return "; ".join(said)


def collect_metrics(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """The run's figures, flat, as `metrics.json` holds them."""
    metrics = drawing_metrics(run, results) if "evaluate" in results else {}
    metrics |= figures_of(results) if "vlm-evaluate" in results else {}
    return metrics | {
        "seed": run.config.seed,
        "seconds_by_stage": {name: result["seconds"] for name, result in results.items()},
        "peak_rss_mib": max(peak_rss_mib(), *(result["peak_rss_mib"] for result in results.values())),
    }


def drawing_metrics(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Those of the text-to-image half."""
    reward, by_prompt = results["reward"], results["evaluate"]["by_prompt"]
    return gain(by_prompt, run.config.seed) | {
        "reward_agreement": reward["agreement"],
        "reward_agreement_ci95": reward["agreement_ci95"],
        "rater_agreement": reward["rater_agreement"],
        "random_agreement": reward["random_agreement"],
        "ece_before": reward["ece_before"],
        "ece_after": reward["ece_after"],
        "reward_before": mean_of(by_prompt, "reward_before"),
        "reward_after": mean_of(by_prompt, "reward_after"),
        "kl": results["evaluate"]["kl"],
        "text_similarity_before": mean_of(by_prompt, "similarity_before"),
        "text_similarity_after": mean_of(by_prompt, "similarity_after"),
        "labels_used": reward["labels_used"],
        "rater": run.config.rater,
    }
