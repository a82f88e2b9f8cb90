"""What slows guessing: after some failures, each further attempt under the same name or from the same address has to wait."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

FIRST_SECONDS = 5.0  # doubled by each further failure
FORGET_SECONDS = 3600.0


@dataclass
class Attempts:
    """The failures under one key, and when the next attempt may be."""

    failures: int = 0
    last: float = 0.0
    until: float = 0.0


class Throttle:
    """Counts failures by key: `free` of them, then waits that double up to `longest` seconds; at most `most` keys are kept."""

    def __init__(
        self, free: int, longest: float, *, most: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.free, self.longest, self.most, self.clock = free, longest, most, clock
        self.known: OrderedDict[str, Attempts] = OrderedDict()
        self.lock = threading.Lock()

    def wait(self, key: str) -> float:
        """The seconds until an attempt may be made; 0 where it may be now."""
        with self.lock:
            found = self.known.get(key)
            return 0.0 if found is None else max(0.0, found.until - self.clock())

    def count(self, key: str) -> float:
        """Take an attempt for a failure, before it is looked at, so that many at once are no way round; 0, or the wait."""
        with self.lock:
            now = self.clock()
            found = self.known.pop(key, None)
            if found is None or now - found.last > FORGET_SECONDS:
                found = Attempts()
            self.known[key] = found  # the newest last
            if found.until > now:
                return found.until - now
            found.failures, found.last = found.failures + 1, now
            self.hold(found)
            while len(self.known) > self.most:
                self.known.popitem(last=False)
        return 0.0

    def forgive(self, key: str) -> None:
        """It was no failure."""
        with self.lock:
            if found := self.known.get(key):
                found.failures = max(0, found.failures - 1)
                self.hold(found)

    def forget(self, key: str) -> None:
        """Whoever this is has proved it: the failures before were slips."""
        with self.lock:
            self.known.pop(key, None)

    def hold(self, found: Attempts) -> None:
        """Set when the next attempt may be."""
        over = found.failures - self.free
        found.until = 0.0 if over < 0 else found.last + min(FIRST_SECONDS * 2.0 ** min(over, 60), self.longest)


def address_of(request: Request) -> str:
    """Where a request comes from, as far as one household or host can be told: of IPv6 the network, which it has whole."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


def in_words(seconds: float) -> str:
    """A wait as raters read it."""
    whole = int(seconds) + 1
    return f"{whole} seconds" if whole < 120 else f"{-(-whole // 60)} minutes"
