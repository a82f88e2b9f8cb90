"""Heads trained on an embedding cache larger than the memory that the process may have.

The cache is written as an earlier run would have left it (random features under the content hashes of real files); then heads are
trained with the process's own memory (RLIMIT_DATA, which counts no mapped file) held below the size of the cache.

    python benchmarks/cache_memory.py            # some three minutes, 4 GB of disk
    python benchmarks/cache_memory.py --quick
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from mmrlhf.data import Pair
from mmrlhf.images import content_hash
from mmrlhf.models import resolve_model
from mmrlhf.rewards.encoders.clip import CLIPBackbone
from mmrlhf.rewards.encoders.disk_cache import fingerprint
from mmrlhf.rewards.training.fit import fit_reward

GIB = 2**30


def wide_backbone(width: int) -> CLIPBackbone:
    """A CLIP model whose image tower has so wide a layer that few rows make a large file."""
    tiny = CLIPBackbone.load(resolve_model("tiny-clip"))
    config = CLIPConfig(
        text_config=tiny.model.config.text_config.to_dict(), projection_dim=64,
        vision_config={"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8,
                       "image_size": 32, "patch_size": 16},
    )  # fmt: skip
    torch.manual_seed(0)
    return CLIPBackbone(CLIPModel(config), tiny.tokenizer, tiny.pixel_mean, tiny.pixel_std)


def write_images(folder: Path, count: int) -> list[Path]:
    """So many different PNG files of 8×8 pixels."""
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, pixels in zip(paths, colours, strict=True):
        Image.fromarray(pixels).save(path, compress_level=1)
    return paths


def write_cache(folder: Path, backbone: CLIPBackbone, paths: list[Path]) -> Path:
    """The two files of a cache that holds a row of random features for each image."""
    folder.mkdir()
    stem, generator = folder / fingerprint(backbone), np.random.default_rng(0)
    with (
        open(stem.with_suffix(".f32"), "wb") as rows,
        open(stem.with_suffix(".hashes"), "w", encoding="ascii") as names,
    ):
        for path in paths:
            rows.write(generator.standard_normal(backbone.feature_width, dtype=np.float32).tobytes())
            names.write(f"{content_hash(path.read_bytes())}\n")
    return stem.with_suffix(".f32")


def own_memory() -> int:
    """Bytes that the process itself holds, mapped files left out (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    count, width = (400, 256) if parser.parse_args().quick else (60_000, 4096)
    with tempfile.TemporaryDirectory() as temporary:
        backbone = wide_backbone(width)
        paths = write_images(Path(temporary) / "images", count)
        rows = write_cache(Path(temporary) / "cache", backbone, paths)
        pairs = [Pair(f"prompt {i % 50}", paths[i], paths[i + 1], float(i % 2)) for i in range(0, count, 2)]
        size, before = rows.stat().st_size, own_memory()
        allowed = min(2 * GIB, size // 2) if size > GIB else 2 * GIB
        resource.setrlimit(resource.RLIMIT_DATA, (before + allowed, -1))
        started = time.perf_counter()
        fit_reward(pairs, backbone, seed=0, epochs=1, validation=0.0, cache=rows.parent, on_epoch=print)
        print(
            f"{count} images, {size / GIB:.2f} GiB of features, heads trained in {time.perf_counter() - started:.0f} s with at "
            f"most {allowed / GIB:.2f} GiB more of the process's own memory; a million images: "
            f"{backbone.feature_width * 4e6 / 1e9:.0f} GB here, and with CLIP ViT-L/14 {(768 + 4 * 1024) * 4e6 / 1e9:.0f} GB"
        )


if __name__ == "__main__":
    main()
