"""A fine-tuning run in its folder: what it changes, what was measured, and how it goes on after a kill."""

import copy
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from mmrlhf import distributed
from mmrlhf.averaging import WeightAverage
from mmrlhf.checkpoint import save_checkpoint
from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.runs import CHECKPOINT, RunResult, check_folder, claim_folder, read_checkpoint, write_advice, write_metrics
from mmrlhf.sharding import full, is_split, split_moments, whole
from mmrlhf.tracking import close_trackers, log_figures, open_trackers

WEIGHT_DECAY = 1e-4  # where a config names none
Loss = tuple[Tensor, dict[str, float]]
"""A scalar, and what is to be known of it."""


@runtime_checkable
class Stateful(Protocol):
    """Something that a checkpoint keeps."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


@runtime_checkable
class Tunable(Protocol):
    """A policy that is fine-tuned. Its state is what training changes; `save` writes weights to load, and says where."""

    @property
    def device(self) -> torch.device: ...
    def parameters(self) -> list[nn.Parameter]: ...
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...
    def save(self, out: Path) -> Path: ...


@runtime_checkable
class RunConfig(Protocol):
    """What a run asks of a config; `weight_decay` and, where there is something to show, `images_every` may be there too."""

    @property
    def out(self) -> Path: ...
    @property
    def epochs(self) -> int: ...
    @property
    def resume(self) -> bool: ...
    @property
    def train_batch_size(self) -> int: ...
    @property
    def micro_batch_size(self) -> int | None: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def lora_rank(self) -> int: ...
    @property
    def ema_decay(self) -> float: ...
    @property
    def kl_budget(self) -> float | None: ...
    @property
    def save_every(self) -> int: ...
    @property
    def trackers(self) -> str: ...


Config = TypeVar("Config", bound=RunConfig)
Policy = TypeVar("Policy", bound=Tunable)


def check_run(config: RunConfig, wanted: dict[str, Any], may_differ: Collection[str]) -> None:
    """Join the other processes, where there are any; UserError for a folder of another run.

    Every run begins with it; call it before a model is loaded, too, so that nobody waits for such an answer.
    """
    distributed.join()
    check_folder(config.out, wanted, resume=config.resume, may_differ=may_differ)


class TrainingRun(Generic[Config, Policy]):
    """The policy that learns, its optimizer, and the folder. All randomness follows from the config and the epoch's number.

    `parts` are what else a checkpoint must keep. Use: `for epoch in run.epochs(): … run.record(line)`, then `run.close()`.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        policy: Policy,
        wanted: dict[str, Any],
        *,
        may_differ: Collection[str],
        parts: Mapping[str, Stateful] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        show: Callable[[int], None] | None = None,
        memory_advice: str = "add --gradient-checkpointing or --dtype bfloat16",
        gradient_advice: str = "lower --learning-rate",
    ) -> None:
        """Take up the last checkpoint, or start. `wanted` are the settings that tell runs apart, all but those that `may_differ`.

        `on_epoch` gets each line of metrics, `show` the number of epochs made, every --images-every of them and at the end, with
        the averaged weights in place. The advices end the messages of two UserErrors. UserError as `check_run` has it.
        """
        check_run(config, wanted, may_differ)
        self.name, self.config, self.policy, self.parts = name, config, policy, dict(parts or {})
        self.on_epoch, self.show = on_epoch, show
        self.memory_advice, self.gradient_advice = memory_advice, gradient_advice
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=getattr(config, "weight_decay", WEIGHT_DECAY),
        )
        self.split = is_split(policy.parameters()[0])
        """Whether each process has a part of the weights: what reads them all, all do together."""
        self.average = WeightAverage(policy, config.ema_decay)
        self.trackers = open_trackers(config.trackers, config.out, wanted)
        self.at_once = config.micro_batch_size or config.train_batch_size
        self.metrics: list[dict[str, Any]] = []
        self.stopped = ""
        """Why the run ended early, "" where it did not."""
        self.take_up(read_checkpoint(config.out))
        distributed.wait()  # until all have looked at the folder: from here on the main process writes into it
        if distributed.is_main_process():
            claim_folder(config.out, wanted)
            write_metrics(config.out, self.metrics)
        self.started = time.monotonic()
        self.bar: Any = None

    def take_up(self, saved: dict[str, Any] | None) -> None:
        """The state of a checkpoint. A run that its KL budget stopped stays so, unless the budget is higher now or gone."""
        if saved is None:
            return
        self.policy.load_state_dict(saved["policy"])
        self.optimizer.load_state_dict(saved["optimizer"])
        split_moments(self.optimizer)
        self.average.load_state_dict(saved.get("average", {}))
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.metrics = saved["metrics"]
        budget, stopped = self.config.kl_budget, saved.get("stopped", "")
        self.stopped = "" if budget is None or (saved["kl_budget"] and budget > saved["kl_budget"]) else stopped
        if stopped and not self.stopped:
            self.metrics[-1].pop("stopped", None)  # it goes on from there

    def epochs(self) -> Iterator[int]:
        """The numbers of the epochs to make; what there is to show is shown before them."""
        config, done = self.config, len(self.metrics)
        self.bar = tqdm(range(done, config.epochs), initial=done, total=max(done, config.epochs), desc=self.name, unit="epoch",
                        disable=not distributed.is_main_process())  # fmt: skip
        for epoch in self.bar:
            if self.stopped:
                break
            self.show_samples(epoch)
            self.started = time.monotonic()
            yield epoch
        self.bar.close()

    def show_samples(self, epoch: int, last: bool = False) -> None:
        """Call `show` where it is this epoch's turn, with the averaged weights in place."""
        every = getattr(self.config, "images_every", 0)
        if self.show is None or every == 0 or (epoch % every and not last):
            return
        if not (distributed.is_main_process() or self.split):
            return
        with self.average.in_place():
            self.show(epoch)

    def changing(self) -> list[Stateful]:
        """What an update changes."""
        return [self.policy, self.optimizer, self.average]

    def snapshot(self) -> list[Any]:
        """What an update changes, to be put back by `hold_to_budget`; nothing where no budget could ask for it."""
        if self.config.kl_budget is None:
            return []
        return copy.deepcopy([part.state_dict() for part in self.changing()])

    def hold_to_budget(self, kl: float, before: list[Any]) -> None:
        """Where the KL to the start that was measured now exceeds the budget, take the updates since `before` back and stop."""
        if self.config.kl_budget is None or kl <= self.config.kl_budget:
            return
        for part, state in zip(self.changing(), before, strict=True):
            part.load_state_dict(state)
        self.stopped = f"the next KL to the start would be {kl:.3g} nats, over the budget of {self.config.kl_budget:g}"
        if not self.metrics:
            self.stopped += ", in the first epoch already: lower --learning-rate"

    def learn(
        self,
        places: Int[Tensor, " n"],
        loss_of: Callable[[Tensor], Loss],
        whole: int,
        seen: Figures,
        bar: Any,
        spare: Int[Tensor, " 1"] | None = None,
    ) -> None:
        """Add the gradients of Σ loss / `whole` over `n` places in what an update is made of; `seen` gets the figures,
        `bar` how many are done.

        `loss_of(places)` is (the mean loss of some of them, figures). At most --micro-batch-size go through the network at once;
        half as many from then on where the GPU's memory does not suffice, which changes the result by rounding only.
        Where weights are split over processes, one with fewer places makes up for it with passes on `spare` that count nothing.
        """
        if self.split:
            self.learn_together(places, loss_of, whole, seen, bar, spare)
            return
        weights, done = self.policy.parameters(), 0
        while done < len(places):
            part = places[done : done + self.at_once]
            try:
                loss, figures = loss_of(part)
                gradients = torch.autograd.grad(loss * len(part) / whole, weights, allow_unused=True)
            except torch.OutOfMemoryError as error:
                self.halve(len(part), error)
                continue
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
            seen.add(len(part), figures)
            bar.update(len(part))
            done += len(part)

    def learn_together(
        self,
        places: Int[Tensor, " n"],
        loss_of: Callable[[Tensor], Loss],
        whole: int,
        seen: Figures,
        bar: Any,
        spare: Int[Tensor, " 1"] | None,
    ) -> None:
        """`learn` with weights split over processes, which gather and scatter them in each pass: all make equally many."""
        passes = -(-len(places) // self.at_once)
        for turn in range(int(distributed.extremes(passes, passes)[1])):
            part = places[turn * self.at_once : (turn + 1) * self.at_once]
            counts = len(part) > 0
            if not counts:
                assert spare is not None, f"{self.name} trains on unequal parts: it has to name a spare place"
                part = spare
            try:
                loss, figures = loss_of(part)
                (loss * (len(part) / whole if counts else 0.0)).backward()
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"the GPU's memory does not suffice for {len(part)} samples at once: lower --micro-batch-size, or "
                    f"{self.memory_advice}"
                ) from error
            if counts:
                seen.add(len(part), figures)
                bar.update(len(part))

    def halve(self, tried: int, error: Exception) -> None:
        """So many rows at once did not fit into memory: try half from now on. UserError where it was one."""
        if tried == 1:
            raise UserError(f"the GPU's memory does not suffice for one sample: {self.memory_advice}") from error
        self.at_once = tried // 2
        tqdm.write(f"{tried} samples at once do not fit into memory: going on with {self.at_once}", file=sys.stderr)
        torch.cuda.empty_cache()

    def update(self, epoch: int) -> float:
        """One step of the optimizer on the gradients, summed over processes; their norm. UserError where it is no number."""
        if not self.split:  # else the passes backward have done it
            distributed.sum_gradients(self.policy.parameters())
        norm = full(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm))
        if not norm.isfinite():
            raise self.not_a_number("the gradient of the loss", epoch, self.gradient_advice)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.follow()
        return float(norm)

    def record(self, line: dict[str, Any], problems: Mapping[str, str], shown: Sequence[str]) -> None:
        """Keep an epoch's figures, and the state; `problems` are told when they first show, `shown` figures on the bar."""
        known = {name for earlier in self.metrics for name in earlier["problems"]}
        for name in sorted(problems.keys() - known) if distributed.is_main_process() else ():
            tqdm.write(f"not learning ({name}) in epoch {line['epoch']}: {problems[name]}", file=sys.stderr)
        line = line | {"problems": sorted(problems)} | ({"stopped": self.stopped} if self.stopped else {})
        self.metrics.append(line)
        done = len(self.metrics)
        if done % self.config.save_every == 0 or done == self.config.epochs or self.stopped:
            self.save()
        if distributed.is_main_process():
            write_metrics(self.config.out, self.metrics)
            if problems:
                write_advice(self.config.out, problems)
            log_figures(self.trackers, line)
            self.bar.set_postfix({name: f"{line[name]:.3g}" for name in shown})
        if self.on_epoch is not None:
            self.on_epoch(line)

    def seconds(self) -> float:
        """Since the epoch began."""
        return time.monotonic() - self.started

    def save(self) -> None:
        """Write the checkpoint, and the LoRA weights so far (a whole model is only written at the end), in the main process."""
        if not (distributed.is_main_process() or self.split):
            return
        saved = {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "metrics": self.metrics,
            "stopped": self.stopped,
            "kl_budget": self.config.kl_budget,
        }
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        saved = whole(saved | parts)
        if distributed.is_main_process():
            save_checkpoint(saved, self.config.out / CHECKPOINT)
        if self.config.lora_rank:
            with self.average.in_place():
                self.policy.save(self.config.out)

    def close(self) -> RunResult:
        """The last samples and the weights to load; says where they are."""
        self.show_samples(len(self.metrics), last=True)
        if distributed.is_main_process() or self.split:
            with self.average.in_place():
                where = self.policy.save(self.config.out)
        if distributed.is_main_process():
            why = f"stopped: {self.stopped}; " if self.stopped else ""
            epochs = f"{len(self.metrics)} epoch{'s' * (len(self.metrics) != 1)}"
            print(f"{why}{epochs}; the weights to load are in {where}")
        close_trackers(self.trackers)
        distributed.wait()
        return RunResult(self.config.out, self.metrics, self.stopped)

    def not_a_number(self, what: str, epoch: int, change: str) -> UserError:
        """The error that ends a run whose figures are no longer numbers."""
        saved = self.config.out / CHECKPOINT
        kept = f"the last good state is {saved}" if saved.exists() else "no checkpoint was written yet"
        return UserError(f"{what} is not a finite number in epoch {epoch}: {change}; {kept}")
