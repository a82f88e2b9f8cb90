"""Encoded pairs for verl-omni's offline DPO, written, read again, and compared with the pipeline's own encoders."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from diffusion.verl_omni import TENSORS, VerlOmniConfig, export
from mmrlhf.data import Pair, write_pairs
from mmrlhf.errors import UserError
from mmrlhf.images import load_images
from tests.datasets.files import touch
from tests.small_flow_models import small_pipeline


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("models") / "small-sd3"
    return folder, small_pipeline("StableDiffusion3Pipeline", folder)


def pairs_in(folder: Path) -> Path:
    """Two winners, one on each side, and a tie."""
    touch(folder, "a.png", "b.png", "c.png")
    a, b, c = (folder / name for name in ("a.png", "b.png", "c.png"))
    write_pairs([Pair("a cat", a, b, 1.0), Pair("a dog", b, c, 0.25), Pair("a cat", a, c, 0.5)], folder / "p.jsonl")
    return folder / "p.jsonl"


def test_pairs_are_rows_of_latents_and_embeddings(sd3: tuple[Path, Any], tmp_path: Path) -> None:
    folder, pipeline = sd3
    out = tmp_path / "sets" / "train.parquet"
    config = VerlOmniConfig(str(folder), out, data=pairs_in(tmp_path), dtype="float32", device="cpu", size=32)
    assert export(config) == 2
    table = pq.read_table(out)
    assert {table.schema.field(name).type for name in TENSORS} == {pa.binary()}
    assert table.schema.field("win_score").type == table.schema.field("lose_score").type == pa.float64()
    first, second = table.to_pylist()
    assert (second["img_win"], second["img_lose"]) == ("../c.png", "../b.png")
    assert (second["win_score"], second["lose_score"]) == (0.75, 0.25)
    assert first["prompt"] == [{"role": "user", "content": "a cat"}]
    raw = {"raw_prompt": "a cat", "raw_negative_prompt": " "}
    assert first["extra_info"] == {"split": "train", "index": 0, **raw}
    read = {name: torch.load(io.BytesIO(first[name]), weights_only=True) for name in TENSORS}
    with torch.no_grad():
        pixels = 2 * load_images([tmp_path / "a.png"], 32) - 1
        latents = pipeline.vae.encode(pixels).latent_dist.mode()
        text, unwanted, pooled, unwanted_pooled = pipeline.encode_prompt(
            ["a cat"], None, None, negative_prompt=[" "], do_classifier_free_guidance=True
        )
    shift, scale = pipeline.vae.config.shift_factor or 0.0, pipeline.vae.config.scaling_factor
    torch.testing.assert_close(read["img_win_latents"], ((latents - shift) * scale)[0])
    for name, expected in (
        ("prompt_embeds", text), ("pooled_prompt_embeds", pooled), ("negative_prompt_embeds", unwanted),
        ("negative_pooled_prompt_embeds", unwanted_pooled),
    ):  # fmt: skip
        torch.testing.assert_close(read[name], expected[0], rtol=1e-4, atol=1e-5)
    assert read["prompt_embeds_mask"].equal(torch.ones(text.shape[1], dtype=torch.int32))
    assert len(first["img_win_latents"]) < 4 * read["img_win_latents"].numel() + 2000  # its own storage only


def test_a_negative_prompt_can_be_left_out(sd3: tuple[Path, Any], tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    config = VerlOmniConfig(str(sd3[0]), out, data=pairs_in(tmp_path), device="cpu", size=32, negative_prompt=None)
    export(config)
    row = pq.read_table(out).to_pylist()[0]
    assert row["negative_prompt_embeds"] is None and row["negative_pooled_prompt_embeds"] is None
    assert torch.load(io.BytesIO(row["prompt_embeds"]), weights_only=True).dtype == torch.bfloat16


def test_what_verl_omni_does_not_take_is_refused(sd3: tuple[Path, Any], model: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "x.parquet", pairs_in(tmp_path)
    with pytest.raises(UserError, match="is a StableDiffusionPipeline, allowed is StableDiffusion3Pipeline"):
        export(VerlOmniConfig(str(model), out, data=data, device="cpu"))
    with pytest.raises(UserError, match="got neither of --data and --store"):
        export(VerlOmniConfig(str(sd3[0]), out))
    write_pairs([Pair("a cat", tmp_path / "a.png", tmp_path / "b.png", 0.5)], data)
    with pytest.raises(UserError, match="none of the 1 pairs .* has a winner"):
        export(VerlOmniConfig(str(sd3[0]), out, data=data))
    assert not out.exists()
