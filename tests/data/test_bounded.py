"""Programs of others end in time and within memory, and what was set before is set again."""

import re
import resource
import signal
import threading
import time

import pytest

from wellworn.data.bounded import bounded
from wellworn.data.errors import InputError


def test_a_pattern_that_never_ends_is_stopped() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^its pattern: runs for more than 0.2 s$"), bounded("its pattern", seconds=0.2):
        re.fullmatch("(a|a|.)*(.*.*.*.*.*.*)*!", "a" * 60)
    assert time.monotonic() - start < 5


def test_errors_of_all_kinds_that_are_caught_inside_do_not_keep_it_going() -> None:
    def stubborn() -> None:
        with bounded("a program", seconds=0.2):
            while True:
                try:
                    time.sleep(0.01)
                except Exception:
                    continue

    with pytest.raises(InputError, match="runs for more than"):
        stubborn()


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="this system sets no limit on memory")
def test_memory_is_limited_and_the_process_goes_on() -> None:
    with pytest.raises(InputError, match=r"^a text: takes more than 64 MiB of memory$"), bounded("a text", size=2**26):
        "x" * 2**30
    assert len("x" * 2**28) == 2**28


def test_other_errors_pass_and_limits_are_as_before() -> None:
    handler, limits = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, 50.0)
    try:
        with pytest.raises(KeyError), bounded("a program"):
            raise KeyError
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 40 < left <= 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)) == (handler, limits)


def test_a_lower_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**33, 2**34))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    with bounded("a program", size=2**40):
        pass
    assert set_to == [(2**33, 2**34), (2**33, 2**34)]


def test_in_other_threads_there_is_no_alarm() -> None:
    found = []

    def work() -> None:
        with bounded("a program", seconds=1e-3):
            time.sleep(0.05)
        found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
