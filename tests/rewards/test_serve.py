"""The command: what it refuses before it loads anything, and a trained reward served until Ctrl-C."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from mmrlhf.config import parse
from mmrlhf.errors import UserError
from mmrlhf.images import load_image, save_image
from mmrlhf.rewards import load_reward
from mmrlhf.rewards.clip import CLIPReward
from mmrlhf.rewards.serve import ServeConfig, is_loopback, limits_of, serve, token_of

PROGRAM = """
import sys
from mmrlhf.config import parse
from mmrlhf.rewards.serve import ServeConfig, serve
serve(parse(ServeConfig, sys.argv[1:], "mmrlhf reward serve"))
"""


def test_a_trained_reward_is_served_until_ctrl_c(headed: CLIPReward, tmp_path: Path) -> None:
    headed.save(tmp_path / "mine")
    generator = torch.Generator().manual_seed(0)
    for i in range(3):
        save_image(torch.rand(3, 40, 40, generator=generator), tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(3)]
    prompts = ["a red cat", "a dog", "a house"]
    command = [sys.executable, "-c", PROGRAM, "--reward", str(tmp_path / "mine"), "--port", "0", "--flow-grpo"]
    environment = os.environ | {"MMRLHF_TOKEN": "s3cret"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            line = server.stdout.readline()
            match = re.fullmatch(r"serving mine at (http://127\.0\.0\.1:\d+) \(page /docs, Ctrl-C stops\)\n", line)
            assert match, server.stderr.read()
            with httpx.Client(base_url=match[1], timeout=60) as session:
                body = pickle.dumps(
                    {"images": [file.read_bytes() for file in files], "prompts": prompts, "metadata": {}}
                )
                assert session.post("/", content=body).status_code == 401
                answer = pickle.loads(
                    session.post("/", content=body, headers={"Authorization": "Bearer s3cret"}).content
                )
                assert session.get("/health").json()["reward"] == "mine"
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
            assert server.stdout.read() == "stopped serving mine\n"
            assert server.stderr.read() == ""
        finally:
            server.kill()
    images = torch.stack([load_image(file) for file in files])
    with torch.no_grad():
        expected = load_reward(tmp_path / "mine")(images, prompts)
    torch.testing.assert_close(torch.tensor(answer["scores"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--max-batch", "0"], "--max-batch got 0, allowed is a number above 0"),
        (["--max-images", "-1"], "--max-images got -1, allowed is a number above 0"),
        (["--max-image-mb", "nan"], "--max-image-mb got nan, allowed is a number above 0"),
        (["--max-request-mb", "inf"], "--max-request-mb got inf, allowed is a number above 0"),
        (["--max-megapixels", "0"], "--max-megapixels got 0.0, allowed is a number above 0"),
        (["--max-wait-ms", "-1"], "--max-wait-ms got -1.0, allowed is 0 to 60000"),
        (["--token", "two words"], "--token got spaces or letters outside ASCII"),
        (["--token", "é"], "--token got spaces or letters outside ASCII"),
        (["--port", "70000"], "--port got 70000, allowed is 0 .* to 65535"),
        (["--host", "256.0.0.1"], "cannot serve at 256.0.0.1:8000 .*give another"),
        (["--reward", "no-such", "--port", "0"], "reward 'no-such' is neither a name nor a folder"),
    ],
)
def test_bad_options_are_one_line(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        serve(parse(ServeConfig, ["--reward", "brightness", *words], "mmrlhf reward serve"))
    assert "\n" not in str(caught.value)


def test_a_taken_port_is_known_before_the_reward_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve at 127.0.0.1:{port} .*--port"):
            serve(ServeConfig(reward="no-such", port=port))


def test_limits_are_in_the_units_of_their_names() -> None:
    limits = limits_of(
        ServeConfig("brightness", max_image_mb=0.5, max_request_mb=2.0, max_images=3, max_megapixels=1.5)
    )
    assert (limits.image_bytes, limits.request_bytes, limits.images, limits.pixels) == (
        500_000,
        2_000_000,
        3,
        1_500_000,
    )


def test_the_command_lines_token_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRLHF_TOKEN", "theirs")
    assert token_of(ServeConfig("brightness")) == "theirs"
    assert token_of(ServeConfig("brightness", token="mine")) == "mine"
    monkeypatch.delenv("MMRLHF_TOKEN")
    assert token_of(ServeConfig("brightness")) == ""


@pytest.mark.parametrize(
    ("address", "only_here"),
    [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)
def test_who_can_reach_an_address(address: str, only_here: bool) -> None:
    assert is_loopback(address) is only_here
