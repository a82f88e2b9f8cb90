"""What every fine-tuning run does beside its method, tried with a policy of one weight that learns a number."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tqdm import tqdm

from mmrlhf.errors import UserError
from mmrlhf.figures import Figures
from mmrlhf.runs import RunResult, settings
from mmrlhf.training import TrainingRun, check_run

MAY_DIFFER = ("out", "epochs", "resume", "kl_budget")


@dataclass(frozen=True)
class Config:
    """No more than what a run asks for."""

    out: Path
    epochs: int = 4
    resume: bool = False
    train_batch_size: int = 4
    micro_batch_size: int | None = None
    learning_rate: float = 0.1
    max_grad_norm: float = 1.0
    lora_rank: int = 1
    ema_decay: float = 0.0
    kl_budget: float | None = None
    save_every: int = 1
    trackers: str = ""


@dataclass(frozen=True)
class Shown(Config):
    """What some have beside."""

    images_every: int = 2
    weight_decay: float = 0.5


class Number:
    """A weight; the KL to the start is its distance to 0."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.zeros(1))
        self.device = torch.device("cpu")

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight.detach().clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.weight.data.copy_(state["weight"])

    def save(self, out: Path) -> Path:
        torch.save(self.state_dict(), out / "weight.pt")
        return out / "weight.pt"


def begin(config: Config, **more: Any) -> TrainingRun[Config, Number]:
    return TrainingRun("number", config, Number(), settings(config, ["seven"]), may_differ=MAY_DIFFER, **more)


def train(config: Config, stop_after: int | None = None, **more: Any) -> tuple[RunResult, float]:
    """Learn the number 7 from its distance: the result, and the weight."""
    run = begin(config, **more)
    for epoch in run.epochs():
        if epoch == stop_after:
            raise KeyboardInterrupt
        before, seen = run.snapshot(), Figures()
        with tqdm(total=4, disable=True) as bar:
            run.learn(torch.arange(4), lambda part: squared(run.policy, part), 4, seen, bar)
        norm = run.update(epoch)
        run.hold_to_budget(abs(run.policy.weight.item()), before)
        run.record(
            {"epoch": epoch} | seen.of_epoch([norm]), {"slow": f"it is, after {epoch}"} if epoch else {}, ("loss",)
        )
    return run.close(), run.policy.weight.item()


def squared(policy: Number, part: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    loss = (policy.weight - 7).square().expand(len(part)).mean()
    return loss, {"loss": float(loss.detach())}


def test_it_learns_and_writes_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = []
    result, weight = train(Config(tmp_path / "run"), on_epoch=lines.append)
    losses = [line["loss"] for line in result.metrics]
    assert losses == sorted(losses, reverse=True) and losses[0] == 49 and 0 < weight < 7
    assert lines == result.metrics and len((result.out / "metrics.jsonl").read_text().splitlines()) == 4
    assert float(torch.load(result.out / "weight.pt", weights_only=True)["weight"]) == pytest.approx(weight)
    told = capsys.readouterr()
    assert told.err.count("not learning (slow) in epoch 1: it is") == 1
    assert f"4 epochs; the weights to load are in {result.out / 'weight.pt'}" in told.out


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_killed_and_resumed_is_never_killed(tmp_path: Path, decay: float) -> None:
    config = Config(tmp_path / "whole", ema_decay=decay)
    whole, weight = train(config)
    killed = replace(config, out=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(killed, stop_after=2)
    again, other = train(replace(killed, resume=True))
    assert again.metrics == whole.metrics and other == weight
    assert (again.out / "weight.pt").read_bytes() == (whole.out / "weight.pt").read_bytes()


def test_a_checkpoint_of_earlier_versions_is_taken_up(tmp_path: Path) -> None:
    """Before there was an average, a budget or a reason to stop."""
    config = Config(tmp_path / "run", epochs=2)
    train(config)
    saved = torch.load(config.out / "checkpoint.pt", weights_only=True)
    old = {name: saved[name] for name in ("policy", "optimizer", "metrics")}
    torch.save(old, config.out / "checkpoint.pt")
    result, _ = train(replace(config, epochs=3, resume=True))
    assert result.metrics[:2] == saved["metrics"] and len(result.metrics) == 3


def test_over_the_budget_an_epoch_is_taken_back_and_the_run_stops(tmp_path: Path) -> None:
    config = Config(tmp_path / "run", kl_budget=0.25)
    result, weight = train(config)
    assert weight == pytest.approx(0.2, abs=1e-3) and len(result.metrics) == 3
    assert result.stopped == "the next KL to the start would be 0.3 nats, over the budget of 0.25"
    assert [line.get("stopped") for line in result.metrics] == [None, None, result.stopped]
    assert train(replace(config, resume=True))[0] == result
    on = train(replace(config, resume=True, kl_budget=1.0))[0].metrics
    assert len(on) == 4 and not any("stopped" in line for line in on)


def test_a_budget_that_the_first_epoch_exceeds_asks_for_a_lower_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, weight = train(Config(tmp_path / "run", kl_budget=0.01))
    assert weight == 0
    assert result.stopped == (
        "the next KL to the start would be 0.1 nats, over the budget of 0.01, in the first epoch already: lower --learning-rate"
    )
    assert f"{result.stopped}; 1 epoch; the weights to load are in" in capsys.readouterr().out


def test_what_to_change_is_kept_beside_the_metrics(tmp_path: Path) -> None:
    """The newest words of a problem, after a resume, too; nothing where there is none."""
    config = Config(tmp_path / "run")
    train(replace(config, epochs=1))
    assert not (config.out / "advice.json").exists()
    for epochs in (3, 4):
        train(replace(config, epochs=epochs, resume=True))
        assert json.loads((config.out / "advice.json").read_text()) == {"slow": f"it is, after {epochs - 1}"}


def test_what_there_is_to_show_is_shown_on_its_turn(tmp_path: Path) -> None:
    shown: list[int] = []
    train(Shown(tmp_path / "run", epochs=3), show=shown.append)
    assert shown == [0, 2, 3]
    train(Shown(tmp_path / "none", images_every=0), show=shown.append)
    train(Config(tmp_path / "without"), show=shown.append)
    assert shown == [0, 2, 3]


def test_the_weight_decay_is_the_configs_where_it_has_one(tmp_path: Path) -> None:
    decays = [
        begin(kind(tmp_path / kind.__name__)).optimizer.param_groups[0]["weight_decay"] for kind in (Config, Shown)
    ]
    assert decays == [1e-4, 0.5]


def broken(part: torch.Tensor, most: int) -> tuple[torch.Tensor, dict[str, float]]:
    if len(part) > most:
        raise torch.OutOfMemoryError
    return torch.zeros(1, requires_grad=True).sum(), {}


def test_what_does_not_fit_is_halved_and_one_that_does_not_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(Config(tmp_path / "run"), memory_advice="buy more")

    def learn(most: int) -> None:
        run.learn(torch.arange(4), lambda part: broken(part, most), 4, Figures(), tqdm(disable=True))

    learn(1)
    assert run.at_once == 1 and "4 samples at once do not fit into memory: going on with 2" in capsys.readouterr().err
    with pytest.raises(UserError, match="memory does not suffice for one sample: buy more"):
        learn(0)


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    run = begin(Config(tmp_path / "run"), gradient_advice="think")
    run.policy.weight.grad = torch.tensor([float("nan")])
    with pytest.raises(UserError, match="gradient of the loss is not a finite number in epoch 3: think; no checkpoint"):
        run.update(3)
    run.save()
    assert "the last good state is" in str(run.not_a_number("x", 0, "y"))


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    config = Config(tmp_path / "run")
    train(config)
    with pytest.raises(UserError, match="already holds files: give an empty folder, or --resume"):
        check_run(config, settings(config, []), MAY_DIFFER)
    other = replace(config, resume=True, learning_rate=0.2)
    with pytest.raises(UserError, match="holds a run with other settings .*learning_rate was 0.1, now 0.2"):
        check_run(other, settings(other, ["seven"]), MAY_DIFFER)
