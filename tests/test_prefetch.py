"""Read-ahead: in order, bounded, and gone when nobody listens any more."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from offnominal import prefetch as prefetching
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.paths import find_images
from offnominal.prefetch import prefetch


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("offnominal-prefetch")]


def drain(results, received):
    for item, _, _ in results:
        received.append(item)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 4, 50])
def test_order_is_kept(workers, ahead):
    def work(item):
        time.sleep(0.004 * (item % 3 == 0))
        return item * item

    results = list(prefetch(range(30), work, workers, ahead))
    assert results == [(i, i * i, None) for i in range(30)]
    assert threads() == []


def test_real_images_and_one_that_is_missing(tiles):
    files = find_images([tiles / "train"])[:12]
    files.insert(5, tiles / "no-such.jpg")
    seen = list(prefetch(files, read_image))
    assert [item for item, _, _ in seen] == files
    for position, (path, image, error) in enumerate(seen):
        if position == 5:
            assert image is None
            assert isinstance(error, ImageError)
            assert "no-such.jpg: does not exist" in str(error)
        else:
            assert error is None
            np.testing.assert_array_equal(image, read_image(path))


@pytest.mark.parametrize("ahead", [1, 3, 6])
def test_never_more_than_ahead(ahead):
    taken = 0

    def items():
        nonlocal taken
        for item in range(40):
            taken += 1
            yield item

    most = 0
    for received, _ in enumerate(prefetch(items(), str, workers=3, ahead=ahead), start=1):
        time.sleep(0.001)
        most = max(most, taken - received)
        assert taken - received <= ahead
    assert most == ahead
    assert taken == 40


def test_reads_ahead_while_the_consumer_works():
    started = threading.Event()

    def work(item):
        if item == 1:
            started.set()
        return item

    results = prefetch(range(5), work, workers=1, ahead=1)
    next(results)
    assert started.wait(5)
    results.close()


def test_threads_work_at_the_same_time():
    together = threading.Barrier(3, timeout=5)
    results = list(prefetch(range(6), lambda item: together.wait() >= 0, workers=3, ahead=3))
    assert all(ok for _, ok, _ in results)


def test_infinite_sources_are_fine():
    def endless():
        item = 0
        while True:
            yield item
            item += 1

    results = prefetch(endless(), str)
    assert [next(results)[1] for _ in range(100)] == [str(i) for i in range(100)]
    results.close()
    assert threads() == []


def test_results_are_not_kept():
    class Picture:
        pass

    alive = weakref.WeakSet()

    def work(item):
        picture = Picture()
        alive.add(picture)
        return picture

    most = 0
    for _, picture, _ in prefetch(range(60), work, workers=2, ahead=3):
        del picture
        most = max(most, len(alive))
    # Three ahead, and the one the consumer holds.
    assert most <= 4


@pytest.mark.slow
def test_errors_do_not_keep_what_failed():
    class Picture:
        pass

    alive = weakref.WeakSet()

    def work(item):
        picture = Picture()
        alive.add(picture)
        try:
            raise ValueError(item)
        except ValueError as error:
            raise ImageError(item, "is damaged") from error

    errors = [error for _, _, error in prefetch(range(20), work)]
    gc.collect()
    assert len(errors) == 20
    assert len(alive) == 0


def test_other_exceptions_come_at_their_turn():
    def work(item):
        if item == 3:
            raise ZeroDivisionError("three")
        time.sleep(0.002)
        return item

    received = []
    with pytest.raises(ZeroDivisionError, match="three"):
        drain(prefetch(range(20), work, workers=4, ahead=8), received)
    assert received == [0, 1, 2]
    assert threads() == []


def test_a_failing_source_is_reported_after_what_it_gave():
    def items():
        yield 1
        yield 2
        raise OptionError("no such folder")

    received = []
    with pytest.raises(OptionError, match="no such folder"):
        drain(prefetch(items(), str), received)
    assert received == [1, 2]
    assert threads() == []


@pytest.mark.parametrize("how", ["break", "close", "exception", "forgotten"])
@pytest.mark.slow
def test_stopping_early_ends_the_threads(how):
    done = []

    def work(item):
        time.sleep(0.01)
        done.append(item)
        return item

    results = prefetch(range(1000), work, workers=2, ahead=20)
    next(results)
    assert threads()
    if how == "break":
        for item, _, _ in results:
            if item == 3:
                break
        results.close()
    elif how == "close":
        results.close()
    elif how == "exception":
        with pytest.raises(RuntimeError):
            results.throw(RuntimeError("the consumer failed"))
    else:
        del results
        gc.collect()
    assert threads() == []
    assert len(done) < 12


def test_nothing_starts_before_it_is_asked_for():
    results = prefetch(range(5), str)
    assert threads() == []
    results.close()
    assert list(prefetch([], str)) == []


@pytest.mark.parametrize("options", [{"workers": 0}, {"ahead": 0}])
def test_bad_options_are_refused_at_once(options):
    with pytest.raises(OptionError, match=r"=0: expected at least 1"):
        prefetch([1], str, **options)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process of its own")
def test_ctrl_c_stops_promptly():
    script = (
        "import itertools, signal, time\n"
        "from offnominal.prefetch import prefetch\n"
        # A shell starts what it puts in the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def work(item):\n"
        "    time.sleep(0.2)\n"
        "    return item\n"
        "try:\n"
        "    for item, _, _ in prefetch(itertools.count(), work, workers=2, ahead=8):\n"
        "        print(item, flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "0\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert output.splitlines()[-1] == "stopped"
    assert process.returncode == 0


@pytest.mark.parametrize("share", [0.3, 0.6, 3.0])
def test_bytes_in_flight_are_bounded_and_nothing_gets_stuck(share):
    held = most = 0
    lock = threading.Lock()

    def work(item):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.002 * (item % 3))
        if item == 5:
            raise ImageError(item, "is damaged")
        return item

    received = []
    results = prefetch(
        range(20), work, workers=4, ahead=8, weigh=lambda _: int(share * prefetching.IN_FLIGHT)
    )
    for item, _, _ in results:
        received.append(item)
        time.sleep(0.001)
        with lock:
            held -= 1
    assert received == list(range(20))
    assert most == max(1, int(1 / share))
    assert threads() == []


def test_what_waits_for_room_goes_when_the_consumer_does():
    results = prefetch(range(50), str, workers=4, ahead=20, weigh=lambda _: prefetching.IN_FLIGHT)
    assert next(results)[0] == 0
    results.close()
    assert threads() == []


def test_what_cannot_be_weighed_is_raised_at_its_turn():
    def weigh(item):
        if item == 2:
            raise ZeroDivisionError("two")
        return 1

    received = []
    with pytest.raises(ZeroDivisionError, match="two"):
        drain(prefetch(range(9), str, weigh=weigh), received)
    assert received == [0, 1]
