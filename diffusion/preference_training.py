"""What the methods that learn from judged images share: from a run's data to its latents, and the passes over them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion.draft import kl_sampling
from diffusion.policy import DiffusionPolicy
from diffusion.preference_data import PreferenceConfig, encode_once, identity
from diffusion.sft import Batch, BatchLoss, Latents, Places, fit, kl_paths
from diffusion.training import Run, hold_to_budget, load_policy, path_kl
from diffusion.tuning_config import MAY_DIFFER
from mmrlhf.data import Item
from mmrlhf.runs import RunResult, check_folder, settings
from mmrlhf.seeding import seeded


@runtime_checkable
class Validation(Protocol):
    """Judged images that are not trained on."""

    def figures(self) -> dict[str, float]: ...


def prepare(
    config: PreferenceConfig, prompts: Sequence[str], items: Sequence[Item], said: Sequence[float]
) -> tuple[dict[str, Any], DiffusionPolicy, dict[Path, Tensor]]:
    """(the run's identity, its policy, the latents of each image) of all that was judged, and what was said of it.

    The folder is looked at before the images are encoded, which can take long, and may find one that it cannot read.
    """
    told = identity(items, said, config)
    check_folder(config.out, settings(config, prompts) | told, resume=config.resume, may_differ=MAY_DIFFER)
    policy = load_policy(config)
    return told, policy, encode_once(policy, [item.image for item in items], config.train_batch_size)


def train_on_judged(
    run: Run,
    clean: Latents,
    prompts: Sequence[str],
    loss: BatchLoss,
    left_out: Mapping[str, int],
    validation: Validation | None,
    whole: Callable[[Batch, Places], BatchLoss] | None = None,
) -> RunResult:
    """All epochs of a run on these latents; `left_out` goes into each line of metrics as it is, `whole` to `fit`."""
    asked = list(dict.fromkeys(prompts))
    for epoch in run.epochs():
        before = run.snapshot()
        rows, generator = torch.arange(len(clean)), seeded(run.config.seed, epoch)
        figures = fit(run, clean, prompts, rows, loss, generator, epoch, whole=whole)
        kl = kl_at_the_end(run, asked, epoch, before)
        line = {"epoch": epoch, "samples": len(clean), **left_out, "seconds": run.seconds(), "kl": kl, **figures}
        line |= validation.figures() if validation else {}
        run.record(line, {}, ("loss", "implicit_accuracy", "kl"))
    return run.close()


def kl_at_the_end(run: Run, prompts: Sequence[str], epoch: int, before: list[Any]) -> float:
    """The KL to the start on paths of the policy as it is after the epoch; over the budget, its updates are taken back."""
    with kl_sampling(run.policy, run.config):
        measured = kl_paths(run.policy, run.config, prompts, epoch)
        hold_to_budget(run, measured, before)
        return path_kl(run.policy, kl_paths(run.policy, run.config, prompts, epoch) if run.stopped else measured)
