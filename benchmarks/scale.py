"""What several workers bring, what handing out costs, and what a driver needs: by measuring.

``python benchmarks/scale.py overhead``: actors on several raylets, with a stand-in for a detector
that sleeps 20 ms an image; throughput beside n times one actor's.
``network``: a real network with one thread each, one and two processes.
``faults``: a run on two raylets of which a worker is killed every five seconds, a raylet after
fifteen, and once the driver; the log of what was killed, and what was left.
``driver``: the memory of a driver over many tiny images, as it goes.
``costs MEASURED.json``: ten million images on N machines, extrapolated.
All write what they measured into the JSON file that ``-o`` names, and print it as a table.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from offnominal.extras import needs
from offnominal.scale.engines import Serial
from offnominal.scale.parts import Parts, Store
from offnominal.scale.shards import MOST, Engine, Shard, cut, run_shards

IMAGES = 10_000_000


@dataclass
class Sleeper:
    """A stand-in for a detector: so many seconds an image, and the part that a detector writes."""

    parts: Parts
    seconds: float

    def begin(self) -> None:
        """Import what writing takes: a worker is measured once it is ready."""
        import_module("pyarrow.parquet")
        import_module("pyarrow").array([""])  # which imports pandas, where it is there

    def __call__(self, shard: Shard) -> int:
        if self.seconds:
            time.sleep(self.seconds * len(shard.items))
        row = {"score": 0.5, "threshold": 1.0, "is_anomalous": False, "p_value": 0.5,
               "height": 256, "width": 256, "regions": []}  # fmt: skip
        self.parts.write(shard, [json.dumps({"image": one} | row) for one in shard.items])
        return len(shard.items)


def ran(engine: Engine, function: Sleeper, count: int, most: int | None) -> float:
    """Seconds from when the first worker is ready to the last part."""
    names = (f"images/{number // 1000:05d}/{number:08d}.png" for number in range(count))
    began = ended = 0.0
    done = 0

    class Timed:
        """The engine, with the time at which the first shard is given out."""

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def submit(self, shard: Shard) -> None:
            nonlocal began
            began = began or time.perf_counter()
            engine.submit(shard)

    def give_up(shard: Shard, reason: str) -> None:
        raise RuntimeError(f"{shard.name}: {reason}")

    timed: Any = Timed()
    for shard, _ in run_shards(
        function, cut(names, lambda name: "", most), timed, function.parts.has,
        function.parts.written, give_up,
    ):  # fmt: skip
        done += len(shard.items)
        ended = time.perf_counter()  # a cluster takes seconds to be left
    assert done == count
    return ended - began


def overhead(images: int, most: int, actors: Sequence[int]) -> list[dict[str, Any]]:
    """Throughput of 1 to n actors, each on a raylet of its own."""
    needs("ray", "scale", "benchmarks/scale.py overhead")
    from offnominal.scale.actors import Actors

    utils: Any = import_module("ray.cluster_utils")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    rows: list[dict[str, Any]] = []
    there = 0
    try:
        for number in actors:
            for _ in range(number - there):
                cluster.add_node(num_cpus=1)
            there = number
            cluster.wait_for_nodes()
            with tempfile.TemporaryDirectory() as folder:
                function = Sleeper(Parts(Store(folder)), 0.02)
                # All actors are to be ready before the clock starts: those that come late would
                # count as overhead.
                engine = Ready(Actors(cluster.address, number), number)
                seconds = ran(engine, function, images * number, most)
            rate = images * number / seconds
            base = rows[0]["images a second"] if rows else rate
            rows.append({"actors": number, "images a second": round(rate, 2),
                         "of n times one": round(rate / (number * base), 3)})  # fmt: skip
            print(rows[-1], flush=True)
    finally:
        cluster.shutdown()
    return rows


class Ready:
    """An engine that gives nothing out until all its workers are ready."""

    def __init__(self, engine: Any, workers: int) -> None:
        self.engine, self.workers = engine, workers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def start(self, function: Any) -> None:
        self.engine.start(function)
        while self.engine.free < self.workers:
            self.engine.wait()


def network(model: Path, images: Path, count: int, workers: Sequence[int]) -> list[dict[str, Any]]:
    """Images a second of `predict --workers`, one thread each."""
    from offnominal.paths import find_images
    from offnominal.scale.processes import Processes
    from offnominal.scale.scoring import Model, Scorer, digest_of, weights_of

    os.environ["OMP_NUM_THREADS"] = "1"
    files = find_images(images)
    names = [str(files[number % len(files)]) for number in range(count)]
    path = str(model)
    rows: list[dict[str, Any]] = []
    for number in workers:
        with tempfile.TemporaryDirectory() as folder:
            told = Model(path, digest_of(path), weights_of(path), "cpu", "torch")
            scorer = Scorer(told, Parts(Store(folder)))
            engine: Any = Ready(Processes(number), number)
            warm = [Shard(0, tuple(names[:1]), ("",))] * number
            engine.start(scorer)
            for shard in warm:  # the first image of a process is slower than all others
                engine.submit(shard)
            ended = 0
            while ended < number:
                ended += len(engine.wait())
            engine.start = lambda function: None
            began = time.perf_counter()
            for _ in run_shards(
                scorer, cut(names, lambda name: "", 16), engine, lambda shard: False,
                scorer.parts.written, lambda shard, reason: sys.exit(reason),
            ):  # fmt: skip
                pass
            seconds = time.perf_counter() - began
        rate = count / seconds
        base = rows[0]["images a second"] if rows else rate
        rows.append({"workers": number, "images a second": round(rate, 3),
                     "times one": round(rate / base, 3)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def faults(model: Path, images: Path) -> list[dict[str, Any]]:
    """Kill what there is to kill while images are scored, and compare with an undisturbed run."""
    needs("ray", "scale", "benchmarks/scale.py faults")
    utils: Any = import_module("ray.cluster_utils")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    began, rows = time.perf_counter(), list[dict[str, Any]]()

    def note(what: str) -> None:
        rows.append({"seconds": round(time.perf_counter() - began), "what": what})
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "offnominal", "predict", str(model), str(images), "-o"]
        undisturbed, out = Path(folder, "alone"), Path(folder, "out")
        subprocess.run([*command, str(undisturbed), "--workers", "1"], check=True)
        began, due, lost = time.perf_counter(), 5.0, False
        driver = subprocess.Popen([*command, str(out), "--ray", cluster.address])
        note("the driver starts")
        again = False
        while driver.poll() is None:
            time.sleep(0.1)
            if time.perf_counter() - began < due:
                continue
            due += 5.0
            if not lost and due > 15.0:
                cluster.remove_node(nodes[0], allow_graceful=False)
                lost = True
                note("a raylet is killed, and its worker with it")
            elif not again and due > 30.0:
                driver.kill()
                driver.wait()
                parts = len(list((out / "parts").glob("*.parquet")))
                note(f"the driver is killed, with {parts} parts there; the same command starts")
                driver, again = subprocess.Popen(driver.args), True
                cluster.add_node(num_cpus=1)
                note("a raylet joins")
            elif workers := actors():
                os.kill(random.choice(workers), signal.SIGKILL)
                note("a worker is killed")
        note(f"the driver ends with code {driver.returncode}")
        mine, theirs = ((one / "results.jsonl").read_bytes() for one in (out, undisturbed))
        told = [json.loads(line)["image"] for line in mine.splitlines()]
        once = "each once" if len(set(told)) == len(told) else "some of them twice"
        same = "the same bytes as" if mine == theirs else "other bytes than"
        note(f"{len(told)} images, {once}, {same} of the undisturbed run")
    cluster.shutdown()
    return rows


def actors() -> list[int]:
    """Process numbers of the actors on this machine."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if place.read_bytes().startswith(b"ray::_Actor"):
                found.append(int(place.parent.name))
    return found


def driver(count: int) -> list[dict[str, Any]]:
    """Resident memory of a process that lists images of a file, and hands out and joins parts."""
    script = f"from benchmarks.scale import drive; drive({count})"
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, str(Path(root, "src")), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                          check=True, env=os.environ | {"PYTHONPATH": paths})  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for row in found:
        print(row)
    return found


def drive(count: int) -> None:
    """A driver over real PNG files of 8 x 8 pixels that a list names, its workers two processes."""
    import numpy as np
    from PIL import Image

    from offnominal.paths import PassedOver
    from offnominal.scale.listing import listed, stamp_of
    from offnominal.scale.processes import Processes

    with tempfile.TemporaryDirectory() as folder:
        picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
        images = Path(folder, "images")
        for number in range(count):
            place = images / f"{number // 1000:05d}" / f"{number:08d}.png"
            if number % 1000 == 0:
                place.parent.mkdir(parents=True)
                picture.save(place)
                first = place
            else:
                os.link(first, place)
        parts = Parts(Store(str(Path(folder, "out"))))
        rows: list[dict[str, Any]] = []
        began = time.perf_counter()

        def note(done: int) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rows.append({"images": done, "MB": round(pages * resource.getpagesize() / 1e6, 1),
                         "seconds": round(time.perf_counter() - began, 1)})  # fmt: skip

        note(0)
        done, ticked = 0, []
        for shard, _ in run_shards(
            Sleeper(parts, 0.0), cut(listed([str(images)], PassedOver()), stamp_of),
            Processes(2), parts.has, parts.written, lambda shard, reason: sys.exit(reason),
        ):  # fmt: skip
            ticked.append(shard.name)
            before, done = done, done + len(shard.items)
            if before * 10 // count != done * 10 // count:
                note(done)
        joined = sum(1 for _ in parts.lines(ticked))
        note(joined)
        rows[-1]["images"] = f"{joined} joined"
        print(json.dumps(rows))


def costs(count: int) -> dict[str, float]:
    """Seconds of the driver for a shard, of a worker for a part, and of joining for an image."""
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Store(folder))
        shards = list(cut((f"i/{n:08d}.png" for n in range(count * MOST)), lambda n: "", MOST))
        function = Sleeper(parts, 0.0)
        function(shards[0])  # imports what Parquet takes
        began = time.perf_counter()
        for shard in shards:
            function(shard)
        written = (time.perf_counter() - began) / len(shards)
        parts.look()
        began = time.perf_counter()
        for _ in run_shards(function, shards, Serial(), parts.has, parts.written, lambda *all: 0):
            pass
        ticked = (time.perf_counter() - began) / len(shards)
        began = time.perf_counter()
        lines = sum(1 for _ in parts.lines(parts.names))
        joined = (time.perf_counter() - began) / lines
        size = sum(file.stat().st_size for file in Path(folder, "parts").iterdir())
    return {"write a part, s": written, "tick off a shard, s": ticked, "join an image, s": joined,
            "bytes of an image's row": size / (len(shards) * MOST)}  # fmt: skip


def extrapolated(
    image: float,
    megabytes: float,
    link: float,
    hand_out: float,
    found: dict[str, float],
    machines: Sequence[int],
) -> list[dict[str, Any]]:
    """Hours for ten million images on N workers, and what they wait for.

    Parameters
    ----------
    image : float
        Seconds of one worker for an image.
    megabytes, link : float
        Size of an image, and MB a second that the store gives to all workers together.
    hand_out : float
        Seconds of the driver for a shard: listing, sending, hearing.
    found : dict
        As :func:`costs` gives them.
    """  # fmt: skip
    shards = IMAGES / MOST
    rows = []
    for number in machines:
        alone = {
            "workers": (IMAGES * image + shards * found["write a part, s"]) / number,
            "store": IMAGES * megabytes / link,
            "driver": shards * (hand_out + found["tick off a shard, s"]),
        }
        slowest = max(alone, key=lambda name: alone[name])
        joining = IMAGES * found["join an image, s"]
        hours = (alone[slowest] + joining) / 3600
        rows.append({"workers": number, "hours": round(hours, 2), "waits for": slowest,
                     **{f"{name}, h": round(value / 3600, 2) for name, value in alone.items()},
                     "joining, h": round(joining / 3600, 2)})  # fmt: skip
        print(rows[-1])
    return rows


def main() -> None:
    shown = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("what", choices=["overhead", "network", "faults", "driver", "costs"])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="of each actor, or of the run")
    parser.add_argument("--most", type=int, default=64, help="images of a shard (overhead)")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--model", type=Path, help="network, faults: a model file")
    parser.add_argument("--data", type=Path, help="network, faults: a folder of images")
    parser.add_argument("--image", type=float, default=0.02, help="costs: seconds for an image")
    parser.add_argument("--megabytes", type=float, default=1.0, help="costs: of an image")
    parser.add_argument("--link", type=float, default=1000.0, help="costs: MB/s of the store")
    parser.add_argument("--hand-out", type=float, default=0.005, help="costs: s for a shard")
    asked = parser.parse_args()
    found: Any
    if asked.what == "overhead":
        found = overhead(asked.images, asked.most, asked.actors)
    elif asked.what == "network":
        found = network(asked.model, asked.data, asked.images, [1, 2])
    elif asked.what == "faults":
        found = faults(asked.model, asked.data)
    elif asked.what == "driver":
        found = driver(asked.images)
    else:
        told = costs(max(1, asked.images // MOST))
        print({name: float(f"{value:.3g}") for name, value in told.items()})
        given = asked.image, asked.megabytes, asked.link, asked.hand_out
        found = {"costs": told, "table": extrapolated(*given, told, [1, 8, 64, 256, 1024])}
    if asked.output:
        asked.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
