"""Images per second: every method a point, and nothing flattered by cached features."""

import re
from pathlib import Path
from typing import Any

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import gather
from offnominal.report.speed import speed

WARM, COLD = {"computed": 0, "from_cache": 9}, {"computed": 9, "from_cache": 0}


def cell(method: str = "musc", shots: int = 0, cached: bool = True, **run: Any) -> FinishedCell:
    settings = {
        "dataset": "tiles",
        "category": "tile",
        "samples": "1",
        "method": method,
        "shots": shots,
        "seed": 0,
        "sampling": "first",
        "options": {"backbone": "b"},
        "cached": cached,
        "data": {},
        "defects": 0,
        "marked": False,
        "tested": "all",
        "set_aside": 0,
    }
    machine = {"device": "cpu", "cpu": "Some processor", "threads": 1}
    metrics = {"figures": {"image_auroc": 0.9}, "images": 9}
    return FinishedCell(Path(f"{method}-{shots}"), settings, machine | run, metrics)


def timed(method: str, seconds: float | None, shots: int = 0, **run: Any) -> FinishedCell:
    """A cell whose features came from the cache, with the time that it had taken without."""
    timings = {"per_image": 0.001, "per_image_uncached": seconds}
    return cell(method, shots, timings=timings, features=WARM, **run)


def words(figure: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure)


def test_every_method_is_a_named_point_on_the_machine() -> None:
    methods = [f"method-{letter}" for letter in "abcdefghijkl"]
    cells = [timed(method, 2.0**-number) for number, method in enumerate(methods)]
    found = speed(gather(cells))
    told = words(found["figure"])
    assert set(methods) <= set(told)
    # The fastest on top: 2048 images a second.
    rates = ["2,048", "1,024", "512", "256", "128", "64", "32", "16", "8.0", "4.0", "2.0", "1.0"]
    assert [word for word in told if word in rates and told.count(word) == 1][:4] == rates[:4]
    assert set(rates) <= set(told)
    assert found["machine"] == "Some processor, 1 thread"
    assert "the time that the network took when they were made is added" in found["notes"][0]


def test_a_time_that_is_not_all_of_the_work_is_left_out() -> None:
    warm = cell("a", timings={"per_image": 0.001}, features=WARM)
    foreign = timed("b", None)
    cold = cell("c", timings={"per_image": 0.5}, features=COLD)
    bare = cell("d", cached=False, timings={"per_image": 0.25}, features={"computed": 9})
    found = speed(gather([warm, foreign, cold, bare]))
    told = words(found["figure"])
    assert {"c", "d", "2.0", "4.0"} <= set(told)
    assert not {"a", "b", "1,000"} & set(told)
    [note] = found["notes"]
    assert note.startswith("2 setups have no honest speed")


def test_machines_are_told_apart() -> None:
    found = speed(gather([timed("a", 1.0), timed("b", 1.0, device="A card")]))
    assert {"a (Some processor, 1 thread)", "b (A card)"} <= set(words(found["figure"]))
    assert found["machine"] == "Some processor, 1 thread and A card"


def test_times_of_a_busy_machine_are_called_that() -> None:
    busy = "The machine had more to do than it has processors while"
    some = speed(gather([timed("a", 1.0, busy=True), timed("b", 1.0, busy=False)]))
    assert f"{busy} 1 of 2 of these were run" in " ".join(some["notes"])
    both = speed(gather([timed("a", 1.0, busy=True), timed("b", 1.0, busy=True)]))
    assert f"{busy} all of these were run" in " ".join(both["notes"])
    quiet = speed(gather([timed("a", 1.0), timed("b", 1.0)]))
    assert busy not in " ".join(quiet["notes"])


def test_what_the_cache_spared_is_told() -> None:
    """Of four setups one made the features, two found theirs, and one is asked elsewhere."""
    first = cell("a", timings={"per_image": 1.0, "network": 9.0}, features=COLD)
    served = [
        cell(name, timings={"per_image": 0.1, "network_spared": 9.0}, features=WARM)
        for name in "bc"
    ]
    other = cell("d", timings={"per_image": 2.0}, features={"computed": 0, "from_cache": 0})
    told = " ".join(speed(gather([first, *served, other]))["notes"])
    assert "busy for 9 s; without the cache it had been 27 s." in told
    assert "without the cache" not in " ".join(speed(gather([first, other]))["notes"])


def test_one_row_needs_no_figure() -> None:
    assert speed(gather([timed("a", 1.0)]))["figure"] == ""
