"""`mmrlhf select pretrain`: a backbone that learns from unlabelled images, to embed more of their kind with."""

import dataclasses
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmrlhf.backbones import Backbone, make_backbone, save_backbone
from mmrlhf.checkpoint import save_checkpoint
from mmrlhf.config import check
from mmrlhf.data import write_text
from mmrlhf.errors import UserError
from mmrlhf.models import pick_device
from mmrlhf.runs import CHECKPOINT, RunResult, check_folder, claim_folder, read_checkpoint, write_metrics
from mmrlhf.schedule import warmup_cosine
from mmrlhf.seeding import seeded
from selection.embed import Embedder
from selection.pretrain_methods import DINO, Distillation, Method, MethodName, SimCLR, matched, spread
from selection.pretrain_views import WEIGHTS, Pictures, batches, drawn, read_pictures

BACKBONE, UNREADABLE = "backbone", "unreadable.json"
MAY_DIFFER = ("out", "resume", "device", "workers", "save_every")
MIN_CROP: dict[str, float] = {"simclr": 0.08, "dino": 0.4, "distill": 0.4}
WARMUP = 0.05  # share of the run over which the learning rate rises
COLLAPSED = 0.05  # a spread of the embeddings below which they are all alike
WATCHED = 2048  # rows of an epoch's end of which the spread is measured


@dataclass(frozen=True)
class PretrainConfig:
    """Train an image backbone on unlabelled pictures, so that `select` sees what differs among them."""

    images: Path
    """A folder of images or of .tar shards, a shard, or 'shards/{000..012}.tar' in quotes; equal files count once, those that
    cannot be read are listed and skipped."""
    out: Path
    """Folder for the backbone, metrics.jsonl and checkpoint.pt."""
    method: MethodName = "simclr"
    """simclr: views of a picture attract, others repel; dino: a student follows its own average; distill: copy a teacher."""
    backbone: str = "resnet18"
    """The name of a network of torchvision, or else of timm; it starts from random weights."""
    teacher: str = "tiny-clip"
    """With distill: what `select --model` takes: tiny-clip, a folder, or a hub id."""
    image_size: int = 224
    """Side of the square that the backbone sees, in pixels."""
    epochs: int = 100
    """Passes over the pictures."""
    batch_size: int = 256
    """Pictures in an update (all, where there are fewer); simclr gains from many."""
    learning_rate: float = 1e-3
    """Of AdamW: rises over the first twentieth of the run, then falls to 0 along half a cosine."""
    weight_decay: float = 0.04
    """Of AdamW."""
    max_grad_norm: float = 3.0
    """Longer gradients are cut to it."""
    temperature: float = 0.1
    """With simclr: what cosines are divided by; 0.2 to 0.5 suit batches of a hundred or fewer."""
    momentum: float = 0.996
    """With dino: how much of itself the average keeps an update, at first; less suits runs of a few hundred updates."""
    prototypes: int = 2048
    """With dino: how many; its paper has 65,536 for 1.3 million pictures."""
    local_views: int = 8
    """With dino: small views a picture, beside two large ones."""
    min_crop: float | None = None
    """Least share of a picture that a (large) view shows (default: 0.08 for simclr, 0.4 for dino and distill); more for
    drawings on plain grounds, of which small parts show nothing."""
    colour: float = 1.0
    """How much views change colours, as a multiple of the method's own strength; 0 where colours matter."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    workers: int = 0
    """Processes that draw views; the result is the same with any number."""
    seed: int = 0
    """Same seed, same backbone on the same machine."""
    save_every: int = 1
    """Epochs between checkpoints."""
    resume: bool = False
    """Go on with the run in --out, as if it had never stopped."""


def pretrain(config: PretrainConfig) -> RunResult:
    """Train, and write the backbone to `config.out`/backbone; prints where it is."""
    check_config(config)
    check_folder(config.out, {}, resume=config.resume, may_differ=[field.name for field in dataclasses.fields(config)] +
                 ["images_sha256", "teacher_sha256"])  # fmt: skip
    device = pick_device(config.device)
    method, digests = make_method(config, device)
    pictures = read_pictures(config.images)
    wanted = settings(
        config, digests | {"images": hashlib.sha256("".join(sorted(pictures.hashes)).encode()).hexdigest()}
    )
    check_folder(config.out, wanted, resume=config.resume, may_differ=MAY_DIFFER)
    optimizer = torch.optim.AdamW(
        [value for value in method.parameters() if value.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    metrics: list[dict[str, Any]] = []
    if (saved := read_checkpoint(config.out)) is not None:
        method.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        metrics = saved["metrics"]
    claim_folder(config.out, wanted)
    write_metrics(config.out, metrics)
    report_unreadable(config.out, pictures)
    learn(config, method, optimizer, pictures, metrics, device)
    folder = config.out / BACKBONE
    save_backbone(method.exported, folder)
    print(f"{len(metrics)} epochs of {config.method} on {len(pictures.paths)} images, loss {metrics[0]['loss']:.3g} → "
          f"{metrics[-1]['loss']:.3g}; for `mmrlhf select --model`, the backbone is in {folder}")  # fmt: skip
    return RunResult(config.out, metrics)


def check_config(config: PretrainConfig) -> None:
    """UserError for a value outside its range."""
    if config.method not in MIN_CROP:
        raise UserError(f"--method got '{config.method}', allowed are {', '.join(MIN_CROP)}")
    for name in ("epochs", "save_every", "prototypes"):
        check(config, name, lambda value: value >= 1, "1 or more")
    for name in ("workers", "local_views", "weight_decay"):
        check(config, name, lambda value: value >= 0, "0 or more")
    for name in ("learning_rate", "temperature", "max_grad_norm"):
        check(config, name, lambda value: value > 0, "above 0")
    check(config, "batch_size", lambda value: value >= 2, "2 or more")
    check(config, "image_size", lambda value: value >= 32, "32 or more")
    check(config, "momentum", lambda value: 0 <= value <= 1, "from 0 to 1")
    check(config, "colour", lambda value: 0 <= value <= 2, "from 0 to 2")
    if config.min_crop is not None:
        check(config, "min_crop", lambda value: 0 < value <= 1, "above 0, up to 1")


def make_method(config: PretrainConfig, device: torch.device) -> tuple[Method, dict[str, str]]:
    """The method with fresh weights that follow from the seed, on the device; and digests of what it was made of."""
    teacher = Embedder(config.teacher, device=device) if config.method == "distill" else None
    seed = int(torch.randint(2**31, (), generator=seeded(config.seed, WEIGHTS)))
    method = drawn(seed, lambda: build(config, make_backbone(config.backbone, config.image_size), teacher))
    digests = {} if teacher is None else {"teacher": teacher.fingerprint()}
    return method.train().to(device, memory_format=torch.channels_last), digests


def build(config: PretrainConfig, backbone: Backbone, teacher: Embedder | None) -> Method:
    """The method around a backbone."""
    views: dict[str, Any] = {
        "min_crop": MIN_CROP[config.method] if config.min_crop is None else config.min_crop,
        "colour": config.colour,
    }
    if teacher is not None:
        width = teacher(torch.zeros(1, 3, config.image_size, config.image_size)).shape[1]
        return Distillation(backbone, teacher=teacher, width=width, **views)
    if config.method == "simclr":
        return SimCLR(backbone, temperature=config.temperature, **views)
    return DINO(
        backbone, momentum=config.momentum, prototypes=config.prototypes, local_views=config.local_views, **views
    )


def settings(config: PretrainConfig, digests: dict[str, str]) -> dict[str, Any]:
    """The config as plain data, to tell one run from another, with digests of the folders that it names."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain | {f"{name}_sha256": digest for name, digest in digests.items()}


def report_unreadable(out: Path, pictures: Pictures) -> None:
    """Say how many files were skipped, and list them with the reasons."""
    if not pictures.unreadable:
        return
    write_text(json.dumps(pictures.unreadable, indent=1, ensure_ascii=False) + "\n", out / UNREADABLE)
    first = next(iter(pictures.unreadable.values()))
    print(f"skipped {len(pictures.unreadable)} unreadable files, listed in {out / UNREADABLE}; first: {first}")


def learn(
    config: PretrainConfig,
    method: Method,
    optimizer: torch.optim.Optimizer,
    pictures: Pictures,
    metrics: list[dict[str, Any]],
    device: torch.device,
) -> None:
    """The epochs that are left, each with its line of metrics, and checkpoints."""
    done = len(metrics)
    bar = tqdm(range(done, config.epochs), initial=done, total=config.epochs, desc=config.method, unit="epoch")
    for epoch in bar:
        line = one_epoch(config, method, optimizer, pictures, epoch, device)
        if line["embedding_std"] < COLLAPSED and not any(old["embedding_std"] < COLLAPSED for old in metrics):
            tqdm.write(f"collapse in epoch {epoch}: embeddings are all alike (spread {line['embedding_std']:.3g}): lower "
                       "--learning-rate, or try another --method", file=sys.stderr)  # fmt: skip
        metrics.append(line)
        if len(metrics) % config.save_every == 0 or len(metrics) == config.epochs:
            state = {"policy": method.state_dict(), "optimizer": optimizer.state_dict(), "metrics": metrics}
            save_checkpoint(state, config.out / CHECKPOINT)
        write_metrics(config.out, metrics)
        bar.set_postfix({name: f"{line[name]:.3g}" for name in ("loss", "embedding_std", "matched")})


def one_epoch(
    config: PretrainConfig,
    method: Method,
    optimizer: torch.optim.Optimizer,
    pictures: Pictures,
    epoch: int,
    device: torch.device,
) -> dict[str, Any]:
    """One pass over the pictures; its figures. All chance in it follows from the seed and the epoch's number."""
    started = time.monotonic()
    batch_size = min(config.batch_size, len(pictures.paths))
    loader = batches(pictures.paths, method.augment, batch_size=batch_size, seed=config.seed, epoch=epoch,
                     workers=config.workers)  # fmt: skip
    updates, losses, shares = len(loader), 0.0, 0.0
    rows: list[Tensor] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**31, (), generator=seeded(config.seed, epoch))))
        for number, views in enumerate(tqdm(loader, desc=f"epoch {epoch}", unit="batch", leave=False, delay=5)):
            share = (epoch * updates + number) / (config.epochs * updates)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * warmup_cosine(
                    epoch * updates + number, config.epochs * updates, WARMUP
                )
            step = method.step([view.to(device) for view in views], epoch)
            update(step.loss, method, optimizer, config, epoch)
            method.follow(share)
            losses += float(step.loss.detach())
            shares += matched(step.first, step.second)
            rows = [*rows, step.embeddings.cpu()][-max(1, WATCHED // batch_size) :]
    return {
        "epoch": epoch,
        "loss": losses / updates,
        "embedding_std": spread(torch.cat(rows)),
        "matched": shares / updates,
        "images": updates * batch_size,
        "seconds": time.monotonic() - started,
    }


def update(loss: Tensor, method: Method, optimizer: torch.optim.Optimizer, config: PretrainConfig, epoch: int) -> None:
    """One step of the optimizer. UserError where the loss or its gradient is no number."""
    optimizer.zero_grad()
    loss.backward()
    trained = [value for group in optimizer.param_groups for value in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
    if not math.isfinite(float(loss.detach()) + float(norm)):
        raise UserError(f"the loss is not a finite number in epoch {epoch}: lower --learning-rate, in another --out")
    optimizer.step()
