"""Self-supervised pretraining: losses against their formulas, learning on real drawings, resuming, and use by `select`."""

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrlhf.backbones import Backbone, load_backbone_folder, make_backbone
from mmrlhf.errors import UserError
from mmrlhf.images import list_images, load_image, load_images, save_image, to_pil
from mmrlhf.tiny.emoji import composite, load_art, twemoji_path
from selection import pretrain as module
from selection.embed import Embedder
from selection.pretrain import PretrainConfig, build, make_method, pretrain
from selection.pretrain_methods import DINO, Distillation, SimCLR, matched, spread
from selection.pretrain_views import AugmentedPictures, drawn, read_pictures
from selection.select import SelectConfig, select
from selection.webdataset import Member
from tests.selection.test_webdataset import write_tar

ANIMALS = range(0x1F400, 0x1F440)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 animals, 64 px, over white."""
    folder = tmp_path_factory.mktemp("emoji")
    paths = [path for code in ANIMALS if (path := twemoji_path(f"{code:x}")) is not None][:40]
    for path in paths:
        save_image(composite(load_art(path).unsqueeze(0), torch.ones(1, 3))[0], folder / path.name)
    return folder


def config(images: Path, out: Path, **options: object) -> PretrainConfig:
    """A run of seconds."""
    small = {
        "backbone": "test_resnet",
        "image_size": 64,
        "epochs": 3,
        "batch_size": 20,
        "prototypes": 64,
        "local_views": 1,
    }
    return PretrainConfig(images, out, **(small | options))  # type: ignore[arg-type]


def small_backbone() -> Backbone:
    return drawn(0, lambda: make_backbone("test_resnet", 32))


def views_of(count: int, size: int = 32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(6, 3, size, size, generator=generator) for _ in range(count)]


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """SimCLR's equation 1, pair by pair."""
    rows = F.normalize(torch.cat([first, second]), dim=-1).double()
    count, losses = len(first), []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        others = [float(torch.exp(rows[i] @ rows[k] / temperature)) for k in range(2 * count) if k != i]
        losses.append(-np.log(float(torch.exp(rows[i] @ rows[partner] / temperature)) / sum(others)))
    return float(np.mean(losses))


def test_simclr_is_the_papers_loss_of_the_projected_views() -> None:
    method = SimCLR(small_backbone(), temperature=0.3, min_crop=0.1, colour=1.0).eval()
    views = views_of(2)
    with torch.no_grad():
        projected = [method.head(method.exported(view)) for view in views]
        step = method.step(views, 0)
    assert float(step.loss) == pytest.approx(nt_xent(projected[0], projected[1], 0.3), abs=0.02)  # in mixed precision


def test_dino_is_the_papers_loss_over_all_other_views() -> None:
    method = DINO(small_backbone(), momentum=0.9, prototypes=8, local_views=1, min_crop=0.4, colour=1.0).eval()
    with torch.no_grad():
        for value in method.teacher.parameters():
            value.add_(0.05)  # so that student and teacher differ
        method.criterion.center.copy_(torch.linspace(-0.2, 0.2, 8))
        views, terms = views_of(3), []
        centre = method.criterion.center[0].clone()
        for i in range(2):
            wanted = ((method.teacher_head(method.exported(views[i])) - centre) / 0.04).softmax(-1)
            for j in range(3):
                if i != j:
                    given = (method.head(method.student(views[j])) / 0.1).log_softmax(-1)
                    terms.append(-(wanted * given).sum(-1).mean())
        step = method.step(views, 0)
    assert float(step.loss) == pytest.approx(float(torch.stack(terms).mean()), abs=0.05)  # in mixed precision
    assert not torch.equal(method.criterion.center[0], centre)


def test_distillation_is_one_less_the_cosine_with_the_teacher() -> None:
    target = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    method = Distillation(small_backbone(), teacher=lambda images: target, width=5, min_crop=0.4, colour=1.0).eval()
    (view,) = views_of(1)
    with torch.no_grad():
        given = method.head(method.exported(view))
        step = method.step([view], 0)
    assert float(step.loss) == pytest.approx(1 - float(F.cosine_similarity(given, target).mean()), abs=0.02)


def test_the_teacher_of_dino_follows_the_student_and_gets_no_gradient() -> None:
    method = DINO(small_backbone(), momentum=0.9, prototypes=8, local_views=1, min_crop=0.4, colour=1.0)
    before = [value.clone() for value in method.teacher.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(method.network.parameters(), before, strict=True))
    method.step(views_of(3), 1).loss.backward()
    assert all(value.grad is None for value in method.teacher.parameters())
    assert any(value.grad is not None and value.grad.any() for value in method.network.parameters())
    with torch.no_grad():
        for value in method.network.parameters():
            value.add_(1.0)
    method.follow(0.0)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    method.follow(1.0)  # at the end it no longer moves
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_the_prototypes_are_held_in_the_first_epoch() -> None:
    method = DINO(small_backbone(), momentum=0.9, prototypes=8, local_views=0, min_crop=0.4, colour=1.0)
    for epoch, moves in ((0, False), (1, True)):
        method.step(views_of(2), epoch).loss.backward()
        assert (method.head.last_layer.weight_v.grad is not None) is moves


def test_figures_of_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 40, generator=generator)
    assert spread(rows) == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(500, 40) + 1e-4 * rows) < 1e-3
    assert matched(rows, rows + 0.1 * torch.randn(500, 40, generator=generator)) == 1
    assert matched(rows, rows.roll(1, dims=0)) == 0


def test_views_follow_from_seed_epoch_and_number_alone(emoji: Path, tmp_path: Path) -> None:
    method, _ = make_method(config(emoji, tmp_path), CPU)
    paths = list_images(emoji)

    def views(seed: int, epoch: int, number: int) -> list[Tensor]:
        return AugmentedPictures(paths, method.augment, seed, epoch)[number]

    first = views(0, 0, 3)
    states = (torch.random.get_rng_state(), np.random.get_state()[1].copy())  # type: ignore[index]
    again = views(0, 0, 3)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    np.random.seed(5)
    torch.rand(3), random.random()
    assert all(torch.equal(a, b) for a, b in zip(first, views(0, 0, 3), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(first) == 2 and not torch.equal(first[0], first[1])
    for other in (views(1, 0, 3), views(0, 1, 3), views(0, 0, 4)):
        assert not torch.equal(first[0], other[0])
    assert all(view.shape == (3, 64, 64) and 0 <= view.min() and view.max() <= 1 for view in first)


@pytest.mark.parametrize("name", ["simclr", "dino", "distill"])
def test_colours_stay_where_they_matter(name: str, emoji: Path, tmp_path: Path) -> None:
    red = to_pil(torch.tensor([0.9, 0.2, 0.1])[:, None, None].expand(3, 64, 64))

    def distance(colour: float) -> float:
        method, _ = make_method(config(emoji, tmp_path, method=name, colour=colour, local_views=3), CPU)
        drawings = [view.mean(dim=(1, 2)) for seed in range(8) for view in drawn(seed, lambda: method.augment(red))]
        return max(float((drawing - torch.tensor([0.9, 0.2, 0.1])).abs().max()) for drawing in drawings)

    assert distance(0.0) < 0.01 < 0.1 < distance(1.0)


def gap(backbone: Backbone, paths: list[Path], augment: Callable[..., list[Tensor]]) -> float:
    """Cosine of two views of a picture less that of views of two pictures, on average."""
    views = [AugmentedPictures(paths, augment, 99, 0)[number] for number in range(len(paths))]
    backbone.network.eval()
    with torch.no_grad():
        first, second = (F.normalize(backbone(torch.stack([view[k] for view in views])), dim=-1) for k in (0, 1))
    cosines, own = first @ second.T, torch.eye(len(first), dtype=torch.bool)
    return float(cosines[own].mean() - cosines[~own].mean())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simclr", {"epochs": 6, "temperature": 0.2, "colour": 0.5}),
        ("dino", {"epochs": 4, "momentum": 0.9}),
        ("distill", {"epochs": 4}),
    ],
)
def test_views_of_one_picture_come_closer_than_those_of_two(
    name: str, options: dict, emoji: Path, tmp_path: Path
) -> None:
    asked = config(emoji, tmp_path / "run", method=name, learning_rate=3e-3, batch_size=10, min_crop=0.4, **options)
    paths = list_images(emoji)
    two_views = SimCLR(small_backbone(), temperature=0.2, min_crop=0.4, colour=0.5).augment
    fresh, _ = make_method(asked, CPU)
    before = gap(fresh.exported, paths, two_views)
    result = pretrain(asked)
    after = gap(load_backbone_folder(tmp_path / "run" / "backbone"), paths, two_views)
    if name != "dino":  # whose loss rises while its centre leaves 0
        assert result.metrics[-1]["loss"] < 0.85 * result.metrics[0]["loss"]
    assert after > before + 0.05
    assert result.metrics[-1]["embedding_std"] > 0.2


@pytest.mark.parametrize("name", ["simclr", "dino", "distill"])
def test_a_killed_and_resumed_run_is_one_that_was_never_killed(
    name: str, emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(emoji, tmp_path / "pictures")
    for path in list_images(tmp_path / "pictures")[8:]:
        path.unlink()
    options = {"method": name, "batch_size": 4, "save_every": 2, "epochs": 4}
    whole = pretrain(config(tmp_path / "pictures", tmp_path / "whole", **options))
    written = []

    def killed(out: Path, metrics: list) -> None:
        written.append(len(metrics))
        if len(metrics) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config(tmp_path / "pictures", tmp_path / "cut", **options))
    assert written == [0, 1, 2, 3] and not (tmp_path / "cut" / "backbone").exists()
    resumed = pretrain(config(tmp_path / "pictures", tmp_path / "cut", **options, resume=True))
    for one, other in zip(whole.metrics, resumed.metrics, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    states = [load_backbone_folder(tmp_path / run / "backbone").network.state_dict() for run in ("whole", "cut")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]


def test_workers_draw_the_same(emoji: Path, tmp_path: Path) -> None:
    runs = [pretrain(config(emoji, tmp_path / str(n), epochs=1, workers=n)).metrics[0]["loss"] for n in (0, 2)]
    assert runs[0] == runs[1]


@pytest.fixture(scope="module")
def finished(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    pretrain(config(emoji, out, epochs=2))
    return out


def test_the_backbone_embeds_and_selects(finished: Path, emoji: Path, tmp_path: Path) -> None:
    embedder, backbone = Embedder(str(finished / "backbone"), batch_size=7), load_backbone_folder(finished / "backbone")
    images = load_images(list_images(emoji), 64)
    with torch.no_grad():
        torch.testing.assert_close(embedder(images), F.normalize(backbone(images), dim=-1))
    assert embedder(torch.rand(2, 3, 100, 80)).shape == (2, 96)
    again = Embedder(str(finished / "backbone"))
    assert embedder.fingerprint() == again.fingerprint()
    again.model.conv1[0].weight.data[0, 0, 0, 0] += 0.01
    assert embedder.fingerprint() != again.fingerprint()
    out = tmp_path / "chosen.json"
    select(SelectConfig(budget=5, out=out, images=emoji, model=str(finished / "backbone")))
    result = json.loads(out.read_text())
    assert len(set(result["indices"])) == 5 and result["dimensions"] == 96


def test_a_finished_run_is_only_read_back(
    finished: Path, emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "backbone")
    moved = shutil.copytree(emoji, tmp_path / "moved")
    result = pretrain(config(moved, run, epochs=2, resume=True))
    assert len(result.metrics) == 2
    assert (run / "backbone" / "model.safetensors").read_bytes() == (
        finished / "backbone" / "model.safetensors"
    ).read_bytes()
    assert "2 epochs of simclr on 40 images" in capsys.readouterr().out


def test_shards_are_the_folder_and_compressed_ones_are_refused(finished: Path, emoji: Path, tmp_path: Path) -> None:
    paths = list_images(emoji)
    for number in range(4):
        members = {path.name: path.read_bytes() for path in paths[10 * number : 10 * number + 10]}
        write_tar(tmp_path / "shards" / f"{number}.tar", members | {"note.txt": b"a note"})
    pretrain(config(tmp_path / "shards", tmp_path / "run", epochs=2))
    pretrain(config(tmp_path / "shards" / "{0..3}.tar", tmp_path / "workers", epochs=2, workers=2))
    weights = (finished / "backbone" / "model.safetensors").read_bytes()
    for run in ("run", "workers"):
        assert (tmp_path / run / "backbone" / "model.safetensors").read_bytes() == weights
    shard = tmp_path / "shards" / "1.tar"
    last = read_pictures(shard).paths[-1]
    assert isinstance(last, Member)
    shard.write_bytes(shard.read_bytes()[: last.start + 30])
    found = read_pictures(tmp_path / "shards")
    assert len(found.paths) == 39 and list(found.unreadable) == [str(shard), str(shard / paths[19].name)]
    (tmp_path / "shards" / "4.tar.gz").write_bytes(gzip.compress((tmp_path / "shards" / "0.tar").read_bytes()))
    with pytest.raises(UserError, match=r"4.tar.gz is compressed.* random order.*: unpack it to a .tar first"):
        pretrain(config(tmp_path / "shards", tmp_path / "none", epochs=1))
    assert not (tmp_path / "none").exists()


def test_unreadable_files_and_copies(emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shutil.copytree(emoji, tmp_path / "pictures")
    paths = list_images(folder)
    paths[0].write_bytes(b"not a picture")
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[3].write_bytes(paths[2].read_bytes())
    found = read_pictures(folder)
    assert found.paths == [paths[2], *paths[4:]] and len(set(found.hashes)) == 37
    pretrain(config(folder, tmp_path / "run", epochs=1))
    listed = json.loads((tmp_path / "run" / "unreadable.json").read_text())
    assert list(listed) == [str(paths[0]), str(paths[1])]
    assert "skipped 2 unreadable files" in capsys.readouterr().out
    for path in paths[4:]:
        path.unlink()
    with pytest.raises(
        UserError, match="holds 1 different readable images .*not a readable image.*allowed is 2 or more"
    ):
        pretrain(config(folder, tmp_path / "other"))


def test_a_batch_of_fewer_pictures_than_asked_for(emoji: Path, tmp_path: Path) -> None:
    assert pretrain(config(emoji, tmp_path, epochs=1, batch_size=256)).metrics[0]["images"] == 40


def test_collapse_is_told_once(
    emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "spread", lambda rows: 0.01)
    pretrain(config(emoji, tmp_path / "run", epochs=2))
    assert capsys.readouterr().err.count("collapse in epoch 0: embeddings are all alike") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet81"}, "unknown backbone 'resnet81'"),
        ({"backbone": "vit_b_32", "image_size": 50}, "takes no images of 50 pixels"),
        ({"method": "distill", "teacher": "tiny-clap"}, "unknown model 'tiny-clap'"),
        ({"epochs": 0}, "--epochs got 0, allowed is 1 or more"),
        ({"batch_size": 1}, "--batch-size got 1, allowed is 2 or more"),
        ({"learning_rate": float("nan")}, "--learning-rate got nan, allowed is above 0"),
        ({"momentum": 1.5}, "--momentum got 1.5, allowed is from 0 to 1"),
        ({"min_crop": 0.0}, "--min-crop got 0.0, allowed is above 0, up to 1"),
        ({"colour": 3.0}, "--colour got 3.0, allowed is from 0 to 2"),
        ({"device": "tpu"}, "--device got 'tpu'"),
    ],
)
def test_bad_options(options: dict, message: str, emoji: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(config(emoji, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_bad_folders(finished: Path, emoji: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already holds files"):
        pretrain(config(emoji, finished, epochs=2))
    with pytest.raises(UserError, match="other settings .learning_rate; .*give the settings of that run"):
        pretrain(config(emoji, finished, epochs=2, learning_rate=0.5, resume=True))
    save_image(load_image(list_images(emoji)[0]) * 0.5, tmp_path / "more" / "dark.png")
    shutil.copytree(emoji, tmp_path / "more", dirs_exist_ok=True)
    with pytest.raises(UserError, match="other settings .images_sha256"):
        pretrain(config(tmp_path / "more", finished, epochs=2, resume=True))
    with pytest.raises(UserError, match="no folder"):
        pretrain(config(tmp_path / "none", tmp_path / "run"))


def test_a_loss_that_is_no_number(emoji: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finite number in epoch .: lower --learning-rate"):
        pretrain(config(emoji, tmp_path, learning_rate=1e30))


def test_the_same_seed_builds_the_same_method(emoji: Path, tmp_path: Path) -> None:
    def weights(seed: int) -> Tensor:
        return next(make_method(config(emoji, tmp_path, seed=seed), CPU)[0].parameters())

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
    assert isinstance(build(config(emoji, tmp_path, method="dino"), small_backbone(), None), DINO)
