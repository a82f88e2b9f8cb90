"""What the rating app must not do: serve files by their paths, or read bodies without end; on every route that it has."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.owner_token import Owner
from apps.rate_api import build_app
from apps.rate_items import read_questions
from apps.rate_limits import MOST_BYTES
from apps.rate_login import COOKIE, sign
from mmrlhf.images import save_image
from mmrlhf.store import Store
from tests.apps.raters import served

OWNER = Owner("t" * 32)
SECRET = "what nobody may read"
OUT = [
    "../" * 8, "..%2f" * 8, "%2e%2e/" * 8, "%2e%2e%2f" * 8, "..%252f" * 8, "....//" * 8, "..\\" * 8, "..%5c" * 8, "..;/" * 8,
    "%c0%ae%c0%ae/" * 8, "//", "%2f", "file://", "~/", "\\\\localhost\\",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("study")
    for i in range(3):
        save_image(torch.full((3, 8, 8), i / 3), folder / "pictures" / f"{i}.png")
    (folder / "secret.txt").write_text(SECRET)
    opened = Store(str(folder / "r.db"))
    items, tasks = read_questions(folder / "pictures")
    opened.add_items(items)
    opened.add_tasks(tasks)
    yield opened
    opened.close()


def routes(store: Store) -> list[str]:
    """The path of every route of the app, Gradio's too, up to its first parameter."""

    async def build() -> Any:  # outside of a loop, Gradio would make some and never close them
        return build_app(store, mode="pair", overlap=1, annotator_names=(), instructions="", owner=OWNER)

    app = asyncio.run(build())
    inner = next(route.app for route in app.routes if type(route).__name__ == "Mount")
    paths = [route.path for route in (*app.routes, *inner.routes) if hasattr(route, "path")]
    return sorted({path.partition("{")[0] for path in paths})


def test_no_route_leads_out_of_the_app(store: Store) -> None:
    """Spelled as they are, so that nothing on the way puts the paths in order; with the cookies of a rater and the owner."""
    secret = Path(str(store.path)).parent / "secret.txt"
    assert secret.is_file()
    targets = [str(secret).lstrip("/"), "etc/passwd"]
    prefixes = routes(store)
    assert {"/", "/api/vote", "/images/", "/owner", "/owner/export/"} <= set(prefixes) and len(prefixes) > 20
    headers = {"Cookie": f"{COOKIE}={sign('ada', store.secret())}; mmrlhf_owner={OWNER.cookie()}"}
    asked = 0
    with served(store, owner=OWNER) as client:
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 80, timeout=60)
        for prefix in prefixes:
            for out in OUT:
                for target in targets:
                    connection.putrequest("GET", f"{prefix.rstrip('/')}/{out}{target}", skip_host=True)
                    for name, value in (headers | {"Host": "localhost"}).items():
                        connection.putheader(name, value)
                    connection.endheaders()
                    answer = connection.getresponse()
                    body = answer.read()
                    assert answer.status < 500, (prefix, out)
                    assert SECRET.encode() not in body and b"root:" not in body, (prefix, out)
                    asked += 1
        connection.close()
    assert asked == len(prefixes) * len(OUT) * len(targets)


@pytest.mark.parametrize(
    "path", ["/api/login", "/api/vote", "/api/logout", "/owner", "/gradio_api/queue/join", "/nowhere"]
)
def test_no_route_reads_a_body_without_end(store: Store, path: str) -> None:
    big = json.dumps({"name": "a" * MOST_BYTES}).encode()
    with served(store, owner=OWNER) as client:
        answer = client.post(path, content=big, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "1000000 bytes" in answer.json()["detail"]
        parts = (big[start : start + 50_000] for start in range(0, len(big), 50_000))  # without its length
        answer = client.post(path, content=parts, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert client.get("/api/state").status_code == 200


def test_a_body_is_cut_off_where_it_is_too_long_not_read_to_its_end(store: Store) -> None:
    sent = 0
    with served(store) as client:
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 80, timeout=60)
        connection.putrequest("POST", "/api/vote")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        try:
            for _ in range(3000):  # 300 MB
                connection.send(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
                sent += 100_000
        except OSError:
            pass  # hung up
        connection.close()
        assert sent < 100_000_000
        assert client.get("/api/state").status_code == 200


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 5000, "abc"])
def test_a_length_that_is_none_is_refused(store: Store, length: str) -> None:
    with served(store) as client:
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 80, timeout=60)
        connection.putrequest("POST", "/api/login")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status in (400, 413)
        connection.close()


def test_a_body_of_ordinary_size_arrives_whole(store: Store) -> None:
    with served(store) as client:
        client.post("/api/login", json={"name": "ada"})
        task = client.get("/api/state").json()["tasks"][0]["task"]
        vote = {"vote_id": "0" * 32, "task": task, "choice": "left", "seconds": 1, "value": "x" * (MOST_BYTES - 500)}
        assert client.post("/api/vote", json=vote).json()["answered"] == 1
