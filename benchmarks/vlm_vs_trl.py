"""GRPO on tiny-llava with mmrlhf and with TRL's GRPOTrainer: tokens of answers a second, sampling and updates together.

In another environment:
pip install trl peft pillow torchvision
In mmrlhf's:
python benchmarks/vlm_vs_trl.py --trl-python OTHER/bin/python --repeats 3

The same on both sides: the model and its LoRA (rank 16 on all linear layers of the language model), pictures, prompts, 8 prompts
of 8 answers a step, at most 120 tokens, temperature 1, one update a step, the KL to the start in the loss (0.04), float32,
threads, a reward that costs nothing (the number of words). Answers are each side's own draws, so what is compared is tokens a
second. The sides take turns, process by process; the first steps of each do not count. Versions are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPTS, GROUP, MOST_TOKENS, RANK, KL = 8, 8, 120, 16, 0.04
SKIPPED = 2
LINEAR = ".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def main() -> None:
    """Run both sides in turns and print the ratio; or, with --side, be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", type=Path, help="python of the environment with TRL")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="file for the figures (JSON)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.folder, options.steps, options.threads)))
        return
    if options.trl_python is None:
        parser.error("--trl-python is needed: the python of an environment in which TRL is installed")
    figures = compare(options)
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of each side, repeat by repeat, and the ratio of the medians."""
    from mmrlhf.models import resolve_model
    from mmrlhf.tiny.scene_files import write_scenes

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder, PROMPTS * options.steps, seed=0)
        (folder / "model").symlink_to(resolve_model("tiny-llava"))
        for number in range(options.repeats):
            for side in sorted(SIDES, reverse=number % 2 == 1):
                python = str(options.trl_python) if side == "trl" else sys.executable
                command = [python, __file__, "--side", side, "--folder", name, "--steps", str(options.steps),
                           "--threads", str(options.threads)]  # fmt: skip
                ended = subprocess.run(command, capture_output=True, text=True)
                if ended.returncode:
                    raise SystemExit(f"{side} failed:\n{ended.stderr[-3000:]}")
                found[side].append(json.loads(ended.stdout.strip().splitlines()[-1]))
    rates = {side: [run["tokens"] / run["seconds"] for run in runs] for side, runs in found.items()}
    ratio = statistics.median(rates["mmrlhf"]) / statistics.median(rates["trl"])
    lengths = {side: statistics.mean(run["tokens"] / run["answers"] for run in runs) for side, runs in found.items()}
    pairs = [a / b for a, b in zip(rates["mmrlhf"], rates["trl"], strict=True)]
    return {
        "tokens_per_second": rates, "ratio": ratio, "ratio_by_repeat": pairs, "threads": options.threads,
        "versions": {side: runs[0]["versions"] for side, runs in found.items()},
        "tokens_per_answer": lengths,
    }  # fmt: skip


def run_mmrlhf(folder: Path, steps: int, threads: int) -> dict[str, Any]:
    """mmrlhf's side."""
    import torch
    import transformers

    from mmrlhf.rewards.language.inputs import Row
    from vlm.answer_rewards import Judgement
    from vlm.grpo import GRPOConfig, train

    def words(rows: list[Row]) -> list[Judgement]:
        return [Judgement((), float(len((row.answer or "").split()))) for row in rows]

    torch.set_num_threads(threads)
    config = GRPOConfig(
        model=str(folder / "model"), prompts=folder / "scenes.jsonl", reward="words:words", out=folder / f"run-{os.getpid()}",
        epochs=steps, prompts_per_epoch=PROMPTS, samples_per_prompt=GROUP, sample_batch_size=PROMPTS * GROUP,
        train_batch_size=PROMPTS * GROUP, max_new_tokens=MOST_TOKENS, lora_rank=RANK, kl_weight=KL, learning_rate=1e-5,
    )  # fmt: skip
    lines = train(config, reward=words).metrics[SKIPPED:]
    return {
        "tokens": sum(line["samples"] * line["length_mean"] for line in lines),
        "answers": sum(line["samples"] for line in lines), "seconds": sum(line["seconds"] for line in lines),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip


def run_trl(folder: Path, steps: int, threads: int) -> dict[str, Any]:
    """TRL's side."""
    import time

    import torch
    import transformers
    import trl
    from datasets import Dataset, Image
    from peft import LoraConfig

    torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    asked = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "image": str(folder / row["image"])} for row in rows
    ]
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def words(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(completion[0]["content"].split())) for completion in completions]

    config = trl.GRPOConfig(
        output_dir=str(folder / f"trl-{os.getpid()}"), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        steps_per_generation=1, max_completion_length=MOST_TOKENS, beta=KL, learning_rate=1e-5, temperature=1.0, loss_type="grpo",
        max_steps=steps, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1,
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=str(folder / "model"), reward_funcs=words, args=config,
        train_dataset=Dataset.from_list(asked).cast_column("image", Image()), callbacks=[Clock()],
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR),
    )  # fmt: skip
    trainer.train()
    lengths = [
        line["completions/mean_length"] for line in trainer.state.log_history if "completions/mean_length" in line
    ]
    answers = PROMPTS * GROUP * (steps - SKIPPED)
    return {
        "tokens": PROMPTS * GROUP * sum(lengths[SKIPPED:steps]), "answers": answers, "seconds": ends[-1] - ends[SKIPPED - 1],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__},
    }  # fmt: skip


SIDES = {"mmrlhf": run_mmrlhf, "trl": run_trl}


if __name__ == "__main__":
    main()
