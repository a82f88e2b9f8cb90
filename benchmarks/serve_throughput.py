"""`mmrlhf reward serve` with batches across requests against --max-batch 1, in one run: equal scores, then the ratio.

Many clients at once send one image a request, as verl-omni does, from a process of their own.

python benchmarks/serve_throughput.py [--reward tiny-clip] [--clients 32] [--requests 40] [--size 64] [--repeats 3] [--threads 1]
"""

import argparse
import http.client
import io
import pickle
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from PIL import Image

MAX_BATCHES = (64, 1)


def request_bodies(count: int, size: int) -> list[bytes]:
    """One smooth random picture and one of 64 prompts each, in flow_grpo's protocol."""
    random = np.random.default_rng(0)
    bodies = []
    for number in range(count):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG")
        content = {"images": [file.getvalue()], "prompts": [f"a picture of {number % 64} things"], "metadata": {}}
        bodies.append(pickle.dumps(content))
    return bodies


def load(host: str, bodies: list[bytes], clients: int) -> tuple[float, list[float]]:
    """Seconds and scores of all requests, sent by so many clients at once, each over one connection."""

    def client(mine: list[bytes]) -> list[float]:
        connection = http.client.HTTPConnection(host, timeout=120)
        scores = []
        for body in mine:
            connection.request("POST", "/", body)
            scores += pickle.loads(connection.getresponse().read())["scores"]
        connection.close()
        return scores

    shares = [bodies[i::clients] for i in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        began = time.perf_counter()
        parts = list(threads.map(client, shares))
        seconds = time.perf_counter() - began
    scores = [0.0] * len(bodies)
    for i, part in enumerate(parts):
        scores[i::clients] = part
    return seconds, scores


def alone(reward: Any, size: int, batch: int) -> float:
    """Images a second of the reward itself, called from one loop: what a server can reach at most. The best within 5 s."""
    import torch

    images, prompts = torch.rand(batch, 3, size, size), [f"a picture of {i} things" for i in range(batch)]
    seconds: list[float] = []
    until = time.perf_counter() + 5
    with torch.no_grad():
        while time.perf_counter() < until:
            began = time.perf_counter()
            reward(images, prompts)
            seconds.append(time.perf_counter() - began)
    return batch / min(seconds)


def main() -> None:
    """Print images a second for each --max-batch, and their ratio."""
    import torch

    from mmrlhf.rewards import load_reward
    from mmrlhf.rewards.serving.app import build_app
    from mmrlhf.rewards.serving.bodies import Limits
    from mmrlhf.rewards.serving.server import running

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="tiny-clip")
    for name, default in (("clients", 32), ("requests", 40), ("size", 64), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reward = load_reward(options.reward)
    limits = Limits(image_bytes=10**7, request_bytes=10**8, images=64, pixels=10**8)
    bodies = request_bodies(options.clients * options.requests, options.size)
    best: dict[int, float] = {}
    scores: dict[int, list[float]] = {}
    with ProcessPoolExecutor(1, get_context("spawn")) as other_process:
        for _ in range(options.repeats + 1):  # the first round warms up
            for max_batch in MAX_BATCHES:
                app = build_app(reward, options.reward, limits=limits, max_batch=max_batch, flow_grpo=True)
                with running(app) as url:
                    work = other_process.submit(load, url.removeprefix("http://"), bodies, options.clients)
                    seconds, scores[max_batch] = work.result()
                best[max_batch] = min(best.get(max_batch, np.inf), seconds)
    np.testing.assert_allclose(scores[64], scores[1], rtol=1e-3, atol=1e-4)
    rates = {max_batch: len(bodies) / seconds for max_batch, seconds in best.items()}
    print(
        f"{options.reward}, {options.clients} clients, {len(bodies)} requests of one {options.size} px image, best of "
        f"{options.repeats + 1}, {options.threads} torch thread(s): across requests {rates[64]:.0f} images/s, "
        f"--max-batch 1 {rates[1]:.0f} images/s ({rates[64] / rates[1]:.2f}x, the same scores)"
    )
    whole, single = (alone(reward, options.size, batch) for batch in MAX_BATCHES)
    print(f"without a server: batches of 64 {whole:.0f} images/s, of 1 {single:.0f} images/s ({whole / single:.2f}x)")


if __name__ == "__main__":
    main()
