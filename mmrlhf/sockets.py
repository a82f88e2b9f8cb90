"""The address of a web server: taken before anything is loaded, and how to write it."""

import socket

from mmrlhf.errors import UserError

WAITING = 128  # connections that may wait until somebody answers


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at this address and answers nobody yet. UserError where the address cannot be had."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port got {port}, allowed is 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(WAITING)  # or Linux would let another program bind it, too
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot serve at {host}:{port} ({error.strerror}): give another --port (0 takes any free one) or --host"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where its clients on this machine go."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
