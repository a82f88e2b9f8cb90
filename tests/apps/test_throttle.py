"""The throttle by a clock of its own: what is free, how waits grow, who is forgiven, and how much it remembers."""

import threading

from starlette.requests import Request

from apps.throttle import Throttle, address_of, in_words


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_waits_begin_after_the_free_failures_and_double() -> None:
    clock = Clock()
    throttle = Throttle(5, 60.0, clock=clock)
    assert [throttle.count("ada") for _ in range(5)] == [0.0] * 5
    waits = []
    for _ in range(6):
        waits.append(throttle.wait("ada"))
        assert throttle.count("ada") == waits[-1]  # refused, and not counted
        clock.now += waits[-1]
        assert throttle.wait("ada") == 0 and throttle.count("ada") == 0
    assert waits == [5, 10, 20, 40, 60, 60]
    assert throttle.wait("bo") == 0


def test_one_who_proves_it_starts_anew_and_an_hour_forgets() -> None:
    clock = Clock()
    throttle = Throttle(2, 900.0, clock=clock)
    throttle.count("ada")
    throttle.count("ada")
    assert throttle.wait("ada") > 0
    throttle.forget("ada")
    assert throttle.wait("ada") == 0
    throttle.count("ada")
    throttle.count("ada")
    clock.now += 3601
    assert throttle.count("ada") == 0 and throttle.wait("ada") == 0


def test_a_success_takes_back_its_own_attempt_and_no_other() -> None:
    """With an own account, guessing others' from the same address is no faster."""
    throttle = Throttle(3, 900.0, clock=Clock())
    for _ in range(3):
        assert throttle.count("address") == 0  # a guess
        if throttle.wait("address") == 0:
            throttle.count("address")  # one's own
            throttle.forgive("address")
    assert throttle.wait("address") > 0
    for _ in range(100):
        throttle.count("busy place")
        throttle.forgive("busy place")
    assert throttle.wait("busy place") == 0


def test_many_at_once_are_no_way_round() -> None:
    throttle = Throttle(5, 60.0)
    let: list[float] = []
    start = threading.Barrier(20)

    def attempt() -> None:
        start.wait()
        let.append(throttle.count("ada"))

    threads = [threading.Thread(target=attempt) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(let)[:5] == [0.0] * 5 and min(sorted(let)[5:]) > 0


def test_memory_is_bounded_and_the_latest_are_kept() -> None:
    throttle = Throttle(1, 60.0, most=100)
    for number in range(1000):
        throttle.count(f"name {number}")
    assert len(throttle.known) == 100 and throttle.wait("name 999") > 0 and throttle.wait("name 0") == 0


def test_an_address_is_a_host_or_a_network() -> None:
    def of(host: str) -> str:
        return address_of(Request({"type": "http", "client": (host, 1), "headers": []}))

    assert of("192.0.2.7") == "192.0.2.7"
    assert of("2001:db8:1:2:3:4:5:6") == of("2001:db8:1:2::9") != of("2001:db8:1:3::9")
    assert of("::ffff:192.0.2.7") != of("::ffff:192.0.2.8")
    assert of("a socket") == "a socket" and address_of(Request({"type": "http", "client": None, "headers": []})) == ""


def test_waits_are_told_in_words() -> None:
    assert in_words(4.2) == "5 seconds" and in_words(800.0) == "14 minutes"
