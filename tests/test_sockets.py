"""The address of a web server: had by one program at a time, and written so that a browser finds it."""

import contextlib
import socket

import pytest

from mmrlhf.errors import UserError
from mmrlhf.sockets import bind, url_of


def test_an_address_is_had_once() -> None:
    """Before anybody answers there, and again when it was given up."""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot serve at 127.0.0.1:{port} \(.*\): give another --port"):
            bind("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:  # waits, and is not refused
            client.sendall(b"GET / HTTP/1.1\r\n")
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", -1, r"--port got -1, allowed is 0 \(any free one\) to 65535"),
        ("127.0.0.1", 65536, "--port got 65536, allowed is 0"),
        ("256.0.0.1", 8000, "cannot serve at 256.0.0.1:8000 .*: give another --port .* or --host"),
    ],
)
def test_an_address_that_is_none(host: str, port: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bind(host, port)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")],
)
def test_the_url_for_this_machine(host: str, shown: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    with bind(host, 0) as listener:
        assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"


def has_ipv6() -> bool:
    """Whether ::1 can be bound."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False
