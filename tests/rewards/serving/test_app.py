"""The server over real sockets: both protocols, many clients at once, and everything that it must refuse."""

import base64
import functools
import io
import json
import math
import pickle
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from mmrlhf import __version__
from mmrlhf.rewards.serving.app import build_app
from mmrlhf.rewards.serving.bodies import MAX_PROMPT, Limits
from mmrlhf.rewards.serving.server import running
from tests.rewards.serving.test_metrics import samples
from tests.rewards.serving.test_plain_pickle import hostile

post = functools.partial(httpx.post, verify=False)  # nothing here is encrypted, and reading certificates takes long
get = functools.partial(httpx.get, verify=False)
LIMITS = Limits(image_bytes=100_000, request_bytes=1_000_000, images=8, pixels=1_000_000)


class Identity:
    """The score says which image and which prompt it is for: 1000 × the prompt's number + the image's level.

    Prompt "abstain" abstains; "break" breaks the call, together with everything in its batch.
    """

    differentiable = False

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        if "break" in prompts:
            raise RuntimeError("broken\non two lines")
        numbers = [math.nan if prompt == "abstain" else float(prompt.removeprefix("p")) for prompt in prompts]
        levels = (images.mean(dim=(1, 2, 3)) * 255).round().double()
        return levels + 1000 * torch.tensor(numbers, dtype=torch.float64)


def picture(level: int, kind: str = "PNG", size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(
        file, kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    return file.getvalue()


def as_json(*items: tuple[bytes, str]) -> dict[str, Any]:
    return {"items": [{"prompt": prompt, "image": base64.b64encode(image).decode()} for image, prompt in items]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Open to all, both protocols."""
    app = build_app(Identity(), "identity", limits=LIMITS, max_batch=16, max_wait=0.002, flow_grpo=True)
    with running(app) as url:
        yield url


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    """Behind a token, both protocols."""
    with running(build_app(Identity(), "identity", limits=LIMITS, token="s3cret", flow_grpo=True)) as url:
        yield url


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    """One line in the form of the path's protocol, which holds the words."""
    pickled = answer.request.url.path in ("/", "/flow-grpo")
    line = pickle.loads(answer.content)["error"] if pickled else answer.json()["detail"]
    assert answer.status_code == status, line
    assert isinstance(line, str) and "\n" not in line and "Traceback" not in line
    for word in words:
        assert word in line, line


# --- JSON and forms ---


def test_json_is_scored_in_order_and_null_abstains(url: str) -> None:
    items = [(picture(10), "p1"), (picture(20, "JPEG", size=16), "p2"), (picture(30), "abstain"), (picture(40), "p3")]
    answer = post(f"{url}/score", json=as_json(*items))
    assert answer.status_code == 200
    assert answer.json() == {"scores": [1010.0, 2020.0, None, 3040.0]}


def test_a_form_is_scored_in_order(url: str) -> None:
    files = [("images", (f"{level}.png", picture(level))) for level in (7, 8, 9)]
    answer = post(f"{url}/score", files=files, data={"prompts": ["p1", "p2", "p3"]})
    assert answer.json() == {"scores": [1007.0, 2008.0, 3009.0]}


def test_base64_with_line_breaks_is_read(url: str) -> None:
    body = {"items": [{"prompt": "p1", "image": base64.encodebytes(picture(5)).decode()}]}
    assert post(f"{url}/score", json=body).json() == {"scores": [1005.0]}


def test_a_scores_digits_are_all_there(url: str) -> None:
    answer = post(f"{url}/score", json=as_json((picture(1), "p0.1234567890123")))
    assert answer.json()["scores"] == [float(torch.tensor(1 + 1000 * 0.1234567890123, dtype=torch.float64))]


def test_the_page_describes_both_forms_and_its_example_works(url: str) -> None:
    page = get(f"{url}/openapi.json").json()
    operation = page["paths"]["/score"]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    answer = post(
        f"{url}/score", json={"items": [content["application/json"]["example"]["items"][0] | {"prompt": "p1"}]}
    )
    assert answer.status_code == 200 and len(answer.json()["scores"]) == 1
    assert set(content["multipart/form-data"]["schema"]["properties"]) == {"images", "prompts"}
    assert {"200", "401", "413", "422"} <= set(operation["responses"])
    assert get(f"{url}/docs").status_code == 200


def test_health(url: str) -> None:
    assert get(f"{url}/health").json() == {"ready": True, "reward": "identity", "version": __version__}


def test_metrics_count_what_happens(url: str) -> None:
    def read() -> dict[str, float]:
        return samples(get(f"{url}/metrics").text)

    before = read()
    post(f"{url}/score", json=as_json((picture(1), "p1"), (picture(2), "p2")))
    post(f"{url}/score", json=as_json((picture(1), "break")))
    get(f"{url}/no/such/path")
    after = read()
    ok, failed, other = (f'mmrlhf_requests_total{{path="{path}",status="{status}"}}'
                         for path, status in (("/score", 200), ("/score", 500), ("other", 404)))  # fmt: skip
    for name, more in (
        (ok, 1),
        (failed, 1),
        (other, 1),
        ("mmrlhf_images_total", 2),
        ("mmrlhf_reward_failures_total", 1),
    ):
        assert after[name] - before.get(name, 0) == more, name
    assert after["mmrlhf_batch_images_count"] - before["mmrlhf_batch_images_count"] == 2


# --- refusals ---


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 422, ("no JSON", "items")),
        (b"\xff\xfe\xff", 422, ("no JSON",)),
        (b"[]", 422, ("no list 'items'",)),
        (b'{"items": {}}', 422, ("no list 'items'",)),
        (b'{"items": []}', 422, ("got no image, allowed are 1 to 8",)),
        (b'{"items": [1]}', 422, ("items[0] has no text 'prompt'",)),
        (b'{"items": [{"prompt": 1, "image": "eA=="}]}', 422, ("items[0]",)),
        (b'{"items": [{"prompt": "p1", "image": "%%%"}]}', 422, ("items[0] is no base64",)),
        (b'{"items": [{"prompt": "p1", "image": "\xc3\xa9"}]}', 422, ("items[0] is no base64",)),
        (b'{"items": [{"prompt": "p1", "image": "eA=="}]}', 422, ("image 0 is not a readable image",)),
        (b'{"items": [{"prompt": "\\ud800", "image": "eA=="}]}', 422, ("surrogate",)),
        (b"[" * 100_000, 422, ("no JSON",)),
        (b"[" * 400_000, 413, ("more than 200000 values",)),
        (b'{"items": [' + b"{}," * 300_000 + b"{}]}", 413, ("more than 200000 values",)),
        (b'{"items": [' + b"{}," * 8 + b"{}]}", 413, ("got 9 images, allowed are 1 to 8", "--max-images")),
    ],
)  # fmt: skip
def test_bad_json_is_one_line(url: str, body: bytes, status: int, words: tuple[str, ...]) -> None:
    answer = post(f"{url}/score", content=body, headers={"Content-Type": "application/json"})
    refused(answer, status, *words)


def png_bomb(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size that its few bytes of zeros need not fill."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def noise(side: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(file, "PNG")
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("image", "status", "words"),
    [
        (b"", 422, ("image 0 is not a readable image", "no known format")),
        (b"GIF89a", 422, ("image 0 is not a readable image",)),
        (b"<svg/>", 422, ("no known format",)),
        (EPS, 422, ("no known format",)),
        (picture(1)[:40], 422, ("image 0 is not a readable image",)),
        (picture(1, "JPEG", 64)[:-300], 422, ("image 0 is not a readable image",)),
        (png_bomb(1001, 1000, b"\0" * 3_004_000), 413, ("1 million pixels", "allowed are 1:", "--max-megapixels")),
        (png_bomb(60_000, 60_000), 422, ("image 0 is not a readable image", "decompression bomb")),
        (png_bomb(0, 5), 422, ("image 0 is not a readable image",)),
        (noise(200), 413, ("image 0 has 0.12 MB, allowed are 0.1", "--max-image-mb")),
    ],
    ids=["empty", "header", "svg", "eps", "cut png", "cut jpeg", "bomb", "great bomb", "no width", "large file"],
)
def test_bad_images_are_one_line_in_every_protocol(url: str, image: bytes, status: int, words: tuple[str, ...]) -> None:
    refused(post(f"{url}/score", json=as_json((image, "p1"))), status, *words)
    refused(post(f"{url}/score", files=[("images", ("x", image))], data={"prompts": ["p1"]}), status, *words)
    refused(post(url, content=pickle.dumps({"images": [image], "prompts": ["p1"]})), status, *words)


def test_many_small_bombs_are_as_large_as_one(url: str) -> None:
    image = png_bomb(500, 500, b"\0" * 500 * 1501)
    assert post(f"{url}/score", json=as_json(*[(image, "p1")] * 4)).json() == {"scores": [1000.0] * 4}
    refused(post(f"{url}/score", json=as_json(*[(image, "p1")] * 5)), 413, "1.25 million pixels in all")


@pytest.mark.parametrize(
    ("files", "prompts", "status", "words"),
    [
        ([("images", picture(1))], [], 422, ("got 1 images and 0 prompts",)),
        ([("images", picture(1))], ["p1", "p2"], 422, ("got 1 images and 2 prompts",)),
        ([("image", picture(1))], ["p1"], 422, ("the form has a field 'image'", "files 'images'")),
        ([("prompts", b"p1")], ["p1"], 422, ("no files, or 'prompts' that are",)),
        ([("images", picture(1))] * 9, ["p1"], 422, ("Maximum number of files is 8",)),
        ([("images", picture(1))], ["p1"] * 9, 422, ("Maximum number of fields is 8",)),
        ([("images", picture(1))], ["x" * (MAX_PROMPT + 1)], 413, ("prompt 0 has 20001 characters",)),
        ([("images", picture(1))], ["x" * (5 * MAX_PROMPT)], 422, ("the form cannot be read", "maximum size")),
    ],
)
def test_bad_forms_are_one_line(
    url: str, files: list[tuple[str, bytes]], prompts: list[str], status: int, words: tuple[str, ...]
) -> None:
    parts = [(name, ("x.png", data)) for name, data in files]
    refused(post(f"{url}/score", files=parts, data={"prompts": prompts}), status, *words)


def test_forms_that_are_none_are_one_line(url: str) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = post(f"{url}/score", content=b"nothing", headers={"Content-Type": kind})
        refused(answer, 422, "form")
    refused(post(f"{url}/score", data={"prompts": "p1"}), 415, "x-www-form-urlencoded", "application/json")
    refused(post(f"{url}/score", content=b"x"), 415, "allowed are application/json")
    refused(get(f"{url}/score"), 405)


def test_a_failing_reward_is_one_line(url: str) -> None:
    refused(post(f"{url}/score", json=as_json((picture(1), "break"))), 500, "RuntimeError: broken on two lines")
    refused(post(url, content=pickle.dumps({"images": [picture(1)], "prompts": ["break"]})), 500, "RuntimeError")


# --- bodies that are not what they say ---


def exchange(url: str, *parts: bytes, read: bool = True, enough: bytes = b"}") -> bytes:
    """Raw bytes to the server; what comes back until it closes, is quiet, or has said `enough`."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
        came = b""
        connection.settimeout(1)
        try:
            while read and (more := connection.recv(65536)):
                came += more
                if enough in came:
                    break
        except TimeoutError:
            pass
        return came


@pytest.mark.parametrize("path", [b"/score", b"/"])
def test_an_oversized_body_is_refused_while_it_streams(url: str, path: bytes) -> None:
    """Without a length, the answer comes at the first byte too many: the end of this body never does."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    answer = exchange(
        url, head, *[b"186a0\r\n" + b"x" * 100_000 + b"\r\n"] * 10, b"1\r\nx\r\n", enough=b"--max-request-mb"
    )
    assert answer.startswith(b"HTTP/1.1 413") and b"more than 1 MB" in answer


def test_a_client_that_sends_all_of_an_oversized_body_reads_why(url: str) -> None:
    """However much is still on its way, the line comes through, and the connection serves the next request."""
    with httpx.Client(verify=False) as session:
        chunks = (b"x" * 100_000 for _ in range(300))
        refused(session.post(f"{url}/score", content=chunks, headers={"Content-Type": "application/json"}), 413, "1 MB")
        files = [("images", ("x", b"x" * 20_000_000))]
        refused(session.post(f"{url}/score", files=files, data={"prompts": ["p1"]}), 413, "more than 1 MB")
        assert flow_grpo_scores(session, url, [picture(1)], ["p1"]) == [1001.0]


def test_an_honest_length_is_refused_before_the_body_comes(url: str) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000000000\r\n\r\n"
    answer = exchange(url, head)
    assert answer.startswith(b"HTTP/1.1 413") and b"more than 1 MB" in answer


@pytest.mark.parametrize("length", [b"10", b"1e9", b"-1", b"99999999999999999999999999", b"\xb2"])
def test_a_lying_length_harms_nobody(url: str, length: bytes) -> None:
    body = json.dumps(as_json((picture(1), "p1"))).encode()
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: " + length
    assert exchange(url, head + b"\r\n\r\n" + body)[:12] in (b"HTTP/1.1 422", b"HTTP/1.1 400", b"HTTP/1.1 413")
    assert post(f"{url}/score", content=body, headers={"Content-Type": "application/json"}).status_code == 200


def test_clients_that_leave_harm_nobody(url: str, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps(as_json((picture(1), "p1"))).encode()
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    for cut in (0, 10, len(body) - 1, len(body)):  # the last leaves before its answer
        exchange(url, head, body[:cut], read=False)
        exchange(url, head.replace(b"/score", b"/"), body[:cut], read=False)
    exchange(url, b"POST /score HT", read=False)
    assert post(f"{url}/score", json=as_json((picture(2), "p2"))).json() == {"scores": [2002.0]}
    assert "Traceback" not in caplog.text and "Exception in ASGI" not in caplog.text


# --- the token ---


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer s3cre",
        "Bearer s3crets",
        "Bearer é",
        "Basic !!",
        "Basic czNjcmV0",
        "Basic /w==",
    ],
)
def test_without_the_token_there_are_no_scores(locked: str, header: str | None) -> None:
    headers = httpx.Headers([] if header is None else [("Authorization", header)], encoding="utf-8")
    refused(post(f"{locked}/score", json=as_json((picture(1), "p1")), headers=headers), 401, "Bearer TOKEN")
    refused(get(f"{locked}/metrics", headers=headers), 401, "no valid token")
    body = pickle.dumps({"images": [picture(1)], "prompts": ["p1"]})
    refused(post(locked, content=body, headers=headers), 401, "no valid token")
    assert get(f"{locked}/health", headers=headers).status_code == 200


def test_with_the_token_there_are(locked: str) -> None:
    headers = {"Authorization": "bearer s3cret"}
    assert post(f"{locked}/score", json=as_json((picture(1), "p1")), headers=headers).json() == {"scores": [1001.0]}
    assert get(f"{locked}/metrics", headers=headers).status_code == 200
    by_url = locked.replace("http://", "http://any:s3cret@")  # for clients that take no header
    answer = post(by_url, content=pickle.dumps({"images": [picture(1)], "prompts": ["p1"]}))
    assert pickle.loads(answer.content) == {"scores": [1001.0]}
    assert get(f"{locked}/openapi.json").json()["paths"]["/score"]["post"]["security"]


def test_a_wrong_token_is_refused_before_the_body_comes(locked: str) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer no\r\nContent-Length: 900000\r\n\r\n"
    assert exchange(locked, head % b"/score").startswith(b"HTTP/1.1 401")
    assert exchange(locked, head % b"/").startswith(b"HTTP/1.1 401")


# --- flow_grpo's protocol ---


def flow_grpo_scores(session: httpx.Client, url: str, images: list[bytes], prompts: list[str]) -> list[float]:
    """A client written from the protocol's description."""
    body = pickle.dumps({"images": images, "prompts": prompts, "metadata": {}})
    answer = session.post(url, content=body, timeout=120)
    content = pickle.loads(answer.content)
    if "error" in content:
        raise RuntimeError(f"{answer.status_code}: {content['error']}")
    assert all(type(score) is float for score in content["scores"])
    return content["scores"]


@pytest.mark.parametrize("path", ["", "/", "/flow-grpo"])
def test_flow_grpos_protocol(url: str, path: str) -> None:
    with httpx.Client(verify=False) as session:
        images = [picture(level, "JPEG", 16) for level in (1, 2, 3)]
        assert flow_grpo_scores(session, url + path, images, ["p1", "p2", "p3"]) == [1001.0, 2002.0, 3003.0]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_its_pickles_may_have_any_protocol_and_metadata(url: str, protocol: int) -> None:
    metadata = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "weights": (0.5, None, True)}
    body = pickle.dumps(
        {"images": (picture(4),), "prompts": ["p1"], "metadata": metadata, "only_strict": True}, protocol
    )
    assert pickle.loads(post(url, content=body).content) == {"scores": [1004.0]}


def test_an_abstention_is_an_error_and_never_a_nan(url: str) -> None:
    with (
        httpx.Client(verify=False) as session,
        pytest.raises(RuntimeError, match="422: the reward abstained on image 1 .1 of 2."),
    ):
        flow_grpo_scores(session, url, [picture(1), picture(2)], ["p1", "abstain"])


@pytest.mark.parametrize("name", [*hostile("true")])
def test_hostile_pickles_run_nothing(url: str, name: str, tmp_path: Any) -> None:
    body = hostile(f"touch {tmp_path}/ran")[name]
    refused(post(url, content=body), 422, "the pickle holds", "allowed are")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], ("no dict",)),
        ({"images": [b"x"]}, ("no dict", "prompts")),
        ({"images": b"x", "prompts": ["p"]}, ("no dict",)),
        ({"images": ["x"], "prompts": ["p"]}, ("no dict",)),
        ({"images": [b"x"], "prompts": [b"p"]}, ("no dict",)),
        ({"images": [b"x"], "prompts": "p"}, ("no dict",)),
        ({"images": [], "prompts": []}, ("got no image",)),
        ({"images": [b"x"], "prompts": []}, ("got 1 images and 0 prompts",)),
    ],
)
def test_pickles_of_something_else_are_one_line(url: str, content: Any, words: tuple[str, ...]) -> None:
    refused(post(url, content=pickle.dumps(content)), 422, *words)


def test_truncated_and_oversized_pickles_are_one_line(url: str) -> None:
    body = pickle.dumps({"images": [picture(1)], "prompts": ["p1"], "metadata": {}})
    for cut in (0, 1, 20, len(body) - 1):
        refused(post(url, content=body[:cut]), 422, "no whole pickle")
    refused(post(url, content=pickle.dumps({"images": [b"x" * 1_000_000], "prompts": ["p1"]})), 413, "1 MB")
    many = {"images": [picture(1)] * 9, "prompts": ["p1"] * 9}
    refused(post(url, content=pickle.dumps(many)), 413, "got 9 images")


def test_the_protocol_is_off_unless_asked_for() -> None:
    with running(build_app(Identity(), "identity", limits=LIMITS)) as url:
        body = pickle.dumps({"images": [picture(1)], "prompts": ["p1"]})
        assert post(url, content=body).status_code == 404
        assert post(f"{url}/flow-grpo", content=body).status_code == 404


# --- many at once ---


def test_32_clients_at_once_get_their_own_scores(url: str) -> None:
    """Each request, of one to four images of two sizes, by one of three ways; some break the reward, and only themselves."""

    def client(number: int) -> int:
        chance, scored = random.Random(number), 0
        with httpx.Client(timeout=60, verify=False) as session:
            for turn in range(12):
                levels = [chance.randrange(256) for _ in range(chance.randint(1, 4))]
                images = [picture(level, "PNG", chance.choice([8, 12])) for level in levels]
                prompts = [f"p{1000 * number + 10 * turn + i}" for i in range(len(levels))]
                if turn % 6 == 5:
                    answer = session.post(f"{url}/score", json=as_json((images[0], "break")))
                    assert answer.status_code == 500
                    continue
                expected = [level + 1000.0 * float(prompt[1:]) for level, prompt in zip(levels, prompts, strict=True)]
                way = chance.randrange(3)
                if way == 0:
                    pairs = zip(images, prompts, strict=True)
                    scores = session.post(f"{url}/score", json=as_json(*pairs)).json()["scores"]
                elif way == 1:
                    files = [("images", ("x", image)) for image in images]
                    scores = session.post(f"{url}/score", files=files, data={"prompts": prompts}).json()["scores"]
                else:
                    scores = flow_grpo_scores(session, url, images, prompts)
                assert scores == expected
                scored += len(scores)
        return scored

    before = samples(get(f"{url}/metrics").text)
    with ThreadPoolExecutor(32) as clients:
        scored = sum(clients.map(client, range(1, 33)))
    after = samples(get(f"{url}/metrics").text)
    assert scored > 500 and after["mmrlhf_images_total"] - before["mmrlhf_images_total"] >= scored


def test_one_image_each_of_eight_clients_is_one_batch() -> None:
    """Nothing is scored until all have come: the wait is longer than the test."""
    app = build_app(Identity(), "identity", limits=LIMITS, max_batch=8, max_wait=60.0)
    with running(app) as url, ThreadPoolExecutor(8) as clients:
        answers = clients.map(lambda i: post(f"{url}/score", json=as_json((picture(i), f"p{i}")), timeout=30), range(8))
        assert [answer.json()["scores"] for answer in answers] == [[1001.0 * i] for i in range(8)]
        assert samples(get(f"{url}/metrics").text)["mmrlhf_batch_images_count"] == 1


def test_the_server_ends_cleanly_with_requests_in_flight() -> None:
    """Those that came are answered; the thread that scores ends."""
    entered, threads = threading.Event(), {thread.name for thread in threading.enumerate()}

    class Slow(Identity):
        def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            entered.set()
            time.sleep(0.3)
            return super().__call__(images, prompts)

    with ThreadPoolExecutor(1) as pool:
        with running(build_app(Slow(), "slow", limits=LIMITS)) as url:
            answer = pool.submit(post, f"{url}/score", json=as_json((picture(1), "p1")), timeout=30)
            assert entered.wait(10)
        assert answer.result(10).json() == {"scores": [1001.0]}
    with pytest.raises(httpx.ConnectError):
        get(f"{url}/health")
    assert len([thread for thread in threading.enumerate() if thread.name == "scorer"]) <= 2 + ("scorer" in threads)
