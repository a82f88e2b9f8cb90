"""`mmrlhf rate` under many raters at once: no answer lost or doubled, no question over its overlap, and how long answers take.

Raters log in, look at both pictures, think (exponentially distributed), answer, and send every twentieth answer twice, as a
page whose connection broke does. The app is a process of its own, this one the raters'. Latency is that of POST /api/vote,
which comes back with the next question. With --find the number of raters is doubled until p95 reaches --goal.

python benchmarks/rate_load.py [--raters 200] [--seconds 60] [--think 5] [--overlap 3] [--pictures 800] [--find] [--goal 1]
"""

import argparse
import asyncio
import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from PIL import Image

from mmrlhf.store import Store

ROOT = Path(__file__).parents[1]
RESENT = 0.05  # share of the answers that are sent twice


class Load(NamedTuple):
    """What raters saw: the ids of acknowledged answers, seconds an answer took, what failed, and answers a second."""

    acknowledged: list[str]
    seconds: list[float]
    failures: Counter[str]
    rate: float


def make_pictures(folder: Path, count: int) -> None:
    """Small pictures, eight a prompt, as an ITEMS.jsonl."""
    random_pixels = np.random.default_rng(0)
    lines = []
    for number in range(count):
        data = io.BytesIO()
        Image.fromarray(random_pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data, "PNG")
        (folder / f"{number}.png").write_bytes(data.getvalue())
        lines.append(f'{{"prompt": "picture {number // 8}", "image": "{number}.png"}}\n')
    (folder / "items.jsonl").write_text("".join(lines))


def start(folder: Path, store: Path, overlap: int) -> tuple[subprocess.Popen[str], str]:
    """`mmrlhf rate` on a free port, and its address."""
    command = [
        sys.executable,
        "-c",
        "from mmrlhf.cli import main; main()",
        "rate",
        "--items",
        str(folder / "items.jsonl"),
    ]
    command += ["--store", str(store), "--overlap", str(overlap), "--port", "0", "--pairs-per-item", "6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        if found := re.search(r"rate at (http://\S+)", line):
            return process, found.group(1)
    raise SystemExit("the app did not start")


async def rater(name: str, client: httpx.AsyncClient, until: float, think: float, load: Load) -> None:
    """One rater, until the time is over or nothing is open."""
    dice = random.Random(name)
    await asyncio.sleep(dice.random() * think)
    answer = await client.post("/api/login", json={"name": name})
    answer.raise_for_status()
    cookies = {"Cookie": "; ".join(f"{key}={value}" for key, value in answer.cookies.items())}
    state = answer.json()
    while state["tasks"] and time.perf_counter() < until:
        task = state["tasks"][0]
        for image in task["images"]:
            (await client.get(f"/{image}", headers=cookies)).raise_for_status()
        waited = dice.expovariate(1 / think)
        await asyncio.sleep(waited)
        vote = {"vote_id": str(uuid.UUID(int=dice.getrandbits(128))), "task": task["task"], "seconds": waited}
        vote["choice"] = dice.choice(["left", "right", "tie"])
        for _ in range(2 if dice.random() < RESENT else 1):
            began = time.perf_counter()
            answer = await client.post("/api/vote", json=vote, headers=cookies)
            load.seconds.append(time.perf_counter() - began)
            answer.raise_for_status()
        load.acknowledged.append(vote["vote_id"])
        state = answer.json()


async def rate(url: str, raters: int, seconds: float, think: float, named: str) -> Load:
    """All raters at once; a rater that fails is counted by the error."""
    load = Load([], [], Counter(), 0.0)
    # the app closes what was idle for 5 s: do not send just then
    limits = httpx.Limits(max_connections=raters, max_keepalive_connections=raters, keepalive_expiry=3)
    until = time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as client:
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # each rater sends their own
        every = [rater(f"{named} {number}", client, until, think, load) for number in range(raters)]
        ended = await asyncio.gather(*every, return_exceptions=True)
    load.failures.update(f"{type(error).__name__}: {error}"[:100] for error in ended if error is not None)
    return load._replace(rate=len(load.acknowledged) / seconds)


def check(store: Path, acknowledged: list[str], overlap: int) -> str:
    """What is wrong in the store, or how many answers it holds."""
    opened = Store(str(store))
    kept = [preference.vote_id for preference in opened.preferences(include_superseded=True)]
    votes = Counter(frozenset(preference.items) for preference in opened.preferences())
    opened.close()
    lost, doubled = len(set(acknowledged) - set(kept)), len(kept) - len(set(kept))
    over = sum(count > overlap for count in votes.values())
    said = f"{len(acknowledged)} acknowledged, {lost} lost, {doubled} doubled, {over} questions over their overlap of {overlap}"
    if lost or doubled or over:
        raise SystemExit(said)
    return said


def cpu_seconds(process: int) -> float:
    """What a process has used so far, whatever else runs; 0 where there is no /proc."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace, raters: int, seconds: float) -> float:
    """One app, one store, so many raters; prints what happened and gives the 95th percentile."""
    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place), Path(place) / "ratings.db"
        make_pictures(folder, arguments.pictures)
        process, url = start(folder, store, arguments.overlap)
        try:
            before = cpu_seconds(process.pid)
            load = asyncio.run(rate(url, raters, seconds, arguments.think, "rater"))
            used = cpu_seconds(process.pid) - before
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)
        middle, high, highest = np.percentile(load.seconds or [np.nan], [50, 95, 99])
        print(
            f"{raters} raters, {seconds:g} s: {load.rate:.1f} answers/s; {check(store, load.acknowledged, arguments.overlap)}"
        )
        print(
            f"  an answer took p50 {middle:.3f} s, p95 {high:.3f} s, p99 {highest:.3f} s; failed: {dict(load.failures) or 'none'}"
        )
        print(
            f"  the app used {1000 * used / max(1, len(load.acknowledged)):.0f} ms of a core an answer, its pictures included"
        )
        print(f"  load of the machine's {os.cpu_count()} cores: {os.getloadavg()[0]:.1f}", flush=True)
    return float(high) if not load.failures else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=5, help="mean seconds a rater looks at a question")
    parser.add_argument("--overlap", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=800)
    parser.add_argument(
        "--find", action="store_true", help="double the raters until p95 reaches the goal, then go half way back"
    )
    parser.add_argument("--goal", type=float, default=1.0, help="seconds")
    arguments = parser.parse_args()
    good, raters = 0, arguments.raters
    while measure(arguments, raters, arguments.seconds) < arguments.goal:
        good = raters
        if not arguments.find:
            return
        raters = raters * 2
    bad = raters
    while arguments.find and good and bad - good > good // 4:
        raters = (good + bad) // 2
        good, bad = (raters, bad) if measure(arguments, raters, arguments.seconds) < arguments.goal else (good, raters)
    print(f"p95 is below {arguments.goal:g} s with {good} raters ({arguments.think:g} s a question), not with {bad}")


if __name__ == "__main__":
    main()
