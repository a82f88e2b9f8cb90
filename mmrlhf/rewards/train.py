"""`mmrlhf reward train`: comparisons in, a folder out that every `--reward` takes."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf import distributed
from mmrlhf.data import write_jsonl
from mmrlhf.errors import UserError
from mmrlhf.rewards.clip import SETTINGS
from mmrlhf.rewards.training.config import Job, TrainConfig, TrainedReward, validate
from mmrlhf.rewards.training.fit import fit_reward
from mmrlhf.rewards.training.from_store import JUDGEMENTS, take_answers
from mmrlhf.runs import CHECKPOINT, METRICS, check_folder, claim_folder, read_checkpoint
from mmrlhf.store import store_name

__all__ = ["TrainConfig", "TrainResult", "fit_reward", "train"]

CONFIG = "train.json"  # config.json is the model's
MAY_DIFFER = ("out", "data", "replay", "start", "cache", "resume", "device")


class TrainResult(NamedTuple):
    """Where the reward is, a dict of figures an epoch, and the reward itself."""

    out: Path
    metrics: list[dict[str, Any]]
    reward: TrainedReward


def train(config: TrainConfig) -> TrainResult:
    """Train, save the reward to `config.out`, return it. A finished run is only read back with `resume`."""
    validate(config)
    distributed.join()
    if config.train == "head" and distributed.size() > 1:
        raise UserError(
            f"--train head got {distributed.size()} processes, allowed is 1: start it without accelerate launch (last, lora and "
            "full share the work)"
        )
    config, is_new = take_answers(config) if config.store is not None else (config, False)
    try:
        job = make_job(config)
    except UserError:
        if is_new:
            release(config.out)
        raise
    wanted = settings(config)
    if not is_new:
        check_folder(config.out, wanted, resume=config.resume, may_differ=MAY_DIFFER, config=CONFIG)
    if config.resume and (config.out / SETTINGS).is_file():
        distributed.say(f"the run is already finished; the reward is in {config.out}")
        return TrainResult(config.out, read_metrics(config.out), job.load(config.out))
    state = read_checkpoint(config.out, ("optimizer", "metrics"))
    distributed.wait()  # until all have looked at the folder: from here on the main process writes into it
    metrics: list[dict[str, Any]] = [] if state is None else list(state["metrics"])

    def report(*lines: dict[str, Any]) -> None:
        metrics.extend(lines)
        if distributed.is_main_process():
            write_jsonl(metrics, config.out / METRICS)

    if distributed.is_main_process():
        claim_folder(config.out, wanted, CONFIG)
    report()
    try:
        reward = job.run(config.out / CHECKPOINT, state, report)
    except UserError:
        release(config.out)
        raise
    if distributed.is_main_process():
        reward.save(config.out)
        (config.out / CHECKPOINT).unlink(missing_ok=True)
        print(f"{summary(metrics, job.judgements)}; the reward is in {config.out}")
    distributed.wait()
    return TrainResult(config.out, metrics, reward)


def make_job(config: TrainConfig) -> Job:
    """What the judgements and the model ask for: a reward that reads, or one that compares images with prompts."""
    from mmrlhf.rewards.language import job as language

    if language.is_asked_for(config):
        return language.make_job(config)
    from mmrlhf.rewards.training.image_job import make_image_job

    return make_image_job(config)


def settings(config: TrainConfig) -> dict[str, Any]:
    """The config as plain data, with a digest of the judgements, to tell one run from another; no store's password."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    if config.store is not None:
        plain["store"] = store_name(config.store)
    files = [config.judgements] if config.replay is None else [config.judgements, config.replay]
    return plain | {"data_sha256": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()}


def release(out: Path) -> None:
    """Give up the folder of a run that failed before its first checkpoint, so that the mended command may have it."""
    if distributed.is_main_process() and not (out / CHECKPOINT).exists():
        for name in (CONFIG, METRICS, JUDGEMENTS):
            (out / name).unlink(missing_ok=True)
        if not any(out.iterdir()):
            out.rmdir()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of a finished run's metrics.jsonl."""
    return [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]


def summary(metrics: list[dict[str, Any]], count: int) -> str:
    """What the last line of the command says."""
    best = max((line["held_out_agreement"] for line in metrics if "held_out_agreement" in line), default=None)
    held_out = "nothing held out" if best is None else f"agreement {best:.3f} on held-out prompts (the best epoch's)"
    epochs = sum("epoch" in line for line in metrics)
    return f"{count} judgements, {epochs} epochs, {held_out}"
