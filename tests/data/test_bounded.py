"""Programs of others end in time and within memory, and what was set before is set again."""

import re
import resource
import signal
import threading
import time

import pytest

from wellworn.data.bounded import run_bounded
from wellworn.data.errors import InputError


def test_a_pattern_that_never_ends_is_stopped() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^its pattern: runs for more than 0.2 s$"):
        run_bounded("its pattern", lambda: re.fullmatch("(a|a|.)*(.*.*.*.*.*.*)*!", "a" * 60), seconds=0.2)
    assert time.monotonic() - start < 5


def test_errors_of_all_kinds_that_are_caught_inside_do_not_keep_it_going() -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    with pytest.raises(InputError, match="runs for more than"):
        run_bounded("a program", stubborn, seconds=0.2)


def test_an_alarm_at_any_moment_is_one_of_the_work() -> None:
    """Right before the end of the work, or after it, an alarm was nobody's."""
    ends = {"in time": 0, "too late": 0}
    for i in range(4000):
        try:
            assert run_bounded("a program", lambda: sum(range(200)), seconds=1e-6 * (1 + i % 60)) == 19_900
            ends["in time"] += 1
        except InputError:
            ends["too late"] += 1
    assert min(ends.values()) > 0, ends


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="this system sets no limit on memory")
def test_memory_is_limited_and_the_process_goes_on() -> None:
    with pytest.raises(InputError, match=r"^a text: takes more than 64 MiB of memory$"):
        run_bounded("a text", lambda: "x" * 2**30, size=2**26)
    assert len("x" * 2**28) == 2**28


def test_other_errors_pass_and_limits_are_as_before() -> None:
    handler, limits = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, 50.0)
    try:
        with pytest.raises(KeyError):
            run_bounded("a program", lambda: {}["x"])
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 40 < left <= 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)) == (handler, limits)


def test_a_lower_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**33, 2**34))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    assert run_bounded("a program", lambda: 5, size=2**40) == 5
    assert set_to == [(2**33, 2**34), (2**33, 2**34)]


def test_in_other_threads_there_is_no_alarm() -> None:
    found = []

    def work() -> None:
        run_bounded("a program", lambda: time.sleep(0.05), seconds=1e-3)
        found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
