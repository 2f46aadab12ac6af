"""How fast a station answers, whether it loses anything, and how its pages do with a long history.

    python benchmarks/station.py throughput --weights mobilenetv2_100_imagenet.safetensors
    python benchmarks/station.py soak --minutes 60 --weights ...
    python benchmarks/station.py history [--rows 1000000] [--database postgresql+psycopg://...]

``throughput``: POST /v1/inspect against ``stream`` of the same model over the same pictures, by
turns; then answers at 80 % of that rate, pictures coming evenly with a fifth of jitter; and what
each process takes while it waits. ``soak``: the same rate for an hour; a worker is killed every
minute, the web process every ten. ``history``: a million results, and the time of each page.

One run on one machine: who sends the pictures works on the same cores.
"""

import argparse
import hashlib
import http.client
import json
import os
import queue
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sqlalchemy as sa
import torch
from PIL import Image

from offnominal import AnomalyDINO, find_images
from offnominal.datasets.synthetic import draw_good
from offnominal.station.access.accounts import create_user
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Inspection, Product, Token, Version
from station_rows import write_history

PASSWORD = "a password for measuring"
PAGES = [
    "/operator",
    "/operator/1",
    "/history",
    "/history?verdict=reject",
    "/history?product=1&label=bad",
    "/history?serial=S0004",
    "/history?label=bad&kind=scratch",
    "/history?product=1&least=1.5",
    "/history?product=1&least=99",
    "/history/500000",
    "/review",
    "/products",
    "/products/1",
    "/products/1/threshold",
    "/products/1/versions",
    "/health",
    "/health?range=month",
    "/shift",
    "/keep",
    "/v1/inspections",
    "/metrics",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=("throughput", "soak", "history"))
    parser.add_argument("--images", type=Path, help="good pictures; drawn if left out")
    parser.add_argument("--weights", type=Path, help="of mobilenetv2_100; built-in if left out")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="of each round")
    parser.add_argument("--minutes", type=float, default=60, help="of the soak")
    parser.add_argument("--kill-worker", type=float, default=60, help="seconds between kills")
    parser.add_argument("--kill-web", type=float, default=600)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--rate", type=float, help="pictures a second, in place of a share")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--database", default="", help="of the history; SQLite if left out")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one if left out")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    try:
        {"throughput": throughput, "soak": soak, "history": history}[given.part](given, folder)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


# -- a station that is set up ----------------------------------------------------------------------


def pictures(given: argparse.Namespace, folder: Path, count: int) -> list[Path]:
    """Pictures of good parts, at the resolution that they are judged at."""
    files = find_images([given.images])[:count] if given.images else []
    made = folder / "parts"
    made.mkdir(parents=True)
    for index in range(count):
        size = (given.resolution, given.resolution)
        image = (
            Image.open(files[index % len(files)]).convert("RGB")
            if files
            else Image.fromarray(draw_good("fabric", 0, index))
        )
        image.resize(size).save(made / f"{index:03d}.png")
    return sorted(made.iterdir())


def set_up(given: argparse.Namespace, folder: Path, files: list[Path]) -> tuple[Path, str]:
    """A station with one product and a token; its folder, and the token."""
    station = folder / "station"
    own = {"backbone": "mobilenetv2_100", "weights": str(given.weights)} if given.weights else {}
    settings: dict[str, Any] = {"backbone": "builtin"} | own
    detector = AnomalyDINO(resolution=given.resolution, rotations="none", **settings)
    detector.fit(files[: given.shots], synthetic=False)
    # What is measured is speed: none of the pictures should raise an alarm.
    detector.set_threshold(10 * float(detector.calibration.images.max()))
    path = station / "models" / "1" / "1.offn"
    path.parent.mkdir(parents=True)
    detector.save(path)
    token = secrets.token_urlsafe(32)
    database = Database(f"sqlite:///{(station / 'station.sqlite').absolute()}")
    database.upgrade()
    now = datetime.now(UTC)
    with database.writing() as session:
        user = create_user(session, "measure", PASSWORD, "admin")
        product = Product(name="part", created=now, shadow=False)
        session.add(product)
        session.flush()
        version = Version(
            product_id=product.id,
            number=1,
            file="models/1/1.offn",
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
            made_by="measure",
            made=now,
            how="fit",
            threshold=detector.threshold.value if detector.threshold else None,
            facts={"method": "anomalydino", "smoothing": detector.smoothing, "references": []},
        )
        session.add(version)
        session.flush()
        product.live_id = version.id
        digest = hashlib.sha256(token.encode()).hexdigest()
        session.add(
            Token(
                name="bench",
                digest=digest,
                scopes=["inspect", "read"],
                user_id=user.id,
                created=now,
            )
        )
    database.close()
    return station, token


@contextmanager
def serving(station: Path, *more: str) -> Iterator[tuple[int, int]]:
    """A running station: its port and the pid of its supervisor."""
    log = (station / "serve.log").open("w")
    command = [sys.executable, "-m", "offnominal", "serve", str(station), "--port", "0", *more]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 120
        while not (found := re.search(r"http://[\w.]+:(\d+)", (station / "serve.log").read_text())):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit((station / "serve.log").read_text())
            time.sleep(0.1)
        yield int(found[1]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token
        self._connection: http.client.HTTPConnection | None = None

    def inspect(self, content: bytes, request: str) -> tuple[int, dict[str, Any]]:
        """Status and answer; OSError where the station is not there."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "image/png",
            "Idempotency-Key": request,
        }
        try:
            self._connection.request("POST", "/v1/inspect?product=part", content, headers)
            answer = self._connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            self._connection = None
            raise OSError(str(error)) from error


# -- throughput ------------------------------------------------------------------------------------


def throughput(given: argparse.Namespace, folder: Path) -> None:
    files = pictures(given, folder, given.shots + 64)
    station, token = set_up(given, folder, files)
    contents = [file.read_bytes() for file in files[given.shots :]]
    model = station / "models" / "1" / "1.offn"
    with (
        serving(station, "--workers", "1") as (port, pid),
        streaming(model, files[given.shots :]) as stream,
    ):
        flood(port, token, contents, 5)
        idle = memory(pid)
        bare, served = [], []
        for _ in range(given.rounds):
            bare.append(stream(given.seconds))
            served.append(flood(port, token, contents, given.seconds))
            print(f"  bare {bare[-1]:.1f}/s, served {served[-1]:.1f}/s", flush=True)
        share = [one / other for one, other in zip(served, bare, strict=True)]
        print(
            f"throughput: {median(served):.1f}/s of {median(bare):.1f}/s bare: {median(share):.3f}"
        )
        rate = given.load * median(served)
        spent_each = evenly(port, token, contents, rate, 4 * given.seconds)
        middle, last = np.percentile(spent_each, [50, 99])
        print(
            f"at {rate:.1f}/s: median {1000 * middle:.0f} ms, p99 {1000 * last:.0f} ms, "
            f"{last / middle:.2f} times; {len(spent_each)} pictures"
        )
    print("memory while waiting, MB of its own and its share of what others have too:")
    for name, size in idle.items():
        print(f"  {name:<12}{size / 2**20:8.0f}")


# As a worker is: a process that opens the model and nothing else, so that torch, which made the
# model here, is in neither.
_BARE = """
import sys, time, offnominal
detector, files = offnominal.load(sys.argv[1]), sys.argv[2:]
detector.predict(files[:4])
for line in sys.stdin:
    began, done = time.monotonic(), 0
    while (spent := time.monotonic() - began) < float(line):
        done += sum(1 for _ in detector.stream(files))
    print(done / spent, flush=True)
"""


@contextmanager
def streaming(model: Path, files: list[Path]) -> Iterator[Callable[[float], float]]:
    """What says how many pictures a second ``stream`` makes in so many seconds."""
    command = [sys.executable, "-c", _BARE, str(model), *map(str, files)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def run(seconds: float) -> float:
            print(seconds, file=ask, flush=True)
            return float(answers.readline())

        yield run
        ask.close()


def flood(port: int, token: str, contents: list[bytes], seconds: float, clients: int = 6) -> float:
    """Answers a second with several pictures under way all the time."""
    until, done = time.monotonic() + seconds, [0] * clients

    def run(number: int) -> None:
        client = Client(port, token)
        while time.monotonic() < until:
            status, answer = client.inspect(random.choice(contents), secrets.token_hex(8))
            if status == 200 and answer["verdict"] == "good":
                done[number] += 1
            elif status != 503:
                raise SystemExit(f"{status}: {answer}")

    began = time.monotonic()
    together([partial(run, number) for number in range(clients)])
    return sum(done) / (time.monotonic() - began)


def evenly(
    port: int, token: str, contents: list[bytes], rate: float, seconds: float
) -> list[float]:
    """Seconds until each answer, with pictures that come at their own pace."""
    due: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    took: list[float] = []

    def run() -> None:
        client = Client(port, token)
        while (at := due.get()) is not None:
            client.inspect(random.choice(contents), secrets.token_hex(8))
            took.append(time.monotonic() - at)

    def pace() -> None:
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            at = began + (number + random.uniform(-0.1, 0.1)) / rate
            time.sleep(max(0, at - time.monotonic()))
            due.put(time.monotonic())
        for _ in range(8):
            due.put(None)

    together([pace, *[run] * 8])
    return took


def together(work: list[Callable[[], None]]) -> None:
    failed: list[BaseException] = []

    def kept(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # a thread's SystemExit ends nothing by itself
            failed.append(error)

    threads = [threading.Thread(target=kept, args=(one,)) for one in work]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failed:
        raise failed[0]


def children(pid: int) -> dict[int, str]:
    """Processes of a supervisor, itself included: what each is."""
    found = {pid: "supervisor"}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) in found and int(entry.name) != pid:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                found[int(entry.name)] = "worker" if "inspection.worker" in command else "web"
    return found


def memory(pid: int) -> dict[str, int]:
    """Bytes of each process; what several share is shared out."""
    sizes: dict[str, int] = {}
    for number, (one, name) in enumerate(children(pid).items()):
        with suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            sizes[f"{name} {number}"] = 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1])  # type: ignore[index]  # the kernel writes it
    return sizes


# -- soak ------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """What was asked and answered."""

    answered: dict[str, tuple[int, str]] = field(default_factory=dict)
    retries: int = 0
    slow: list[float] = field(default_factory=list)


def soak(given: argparse.Namespace, folder: Path) -> None:
    files = pictures(given, folder, given.shots + 64)
    station, token = set_up(given, folder, files)
    contents = [file.read_bytes() for file in files[given.shots :]]
    sent, sizes, kills = Sent(), [], {"worker": 0, "web": 0}
    with serving(station, "--workers", "1") as (port, pid):
        rate = given.rate or given.load * flood(port, token, contents, 30)
        print(f"{rate:.1f} pictures a second for {given.minutes:g} minutes", flush=True)
        until = time.monotonic() + 60 * given.minutes
        stop = threading.Event()

        def trouble() -> None:
            began = time.monotonic()
            next_worker, next_web = began + given.kill_worker, began + given.kill_web
            while not stop.wait(1):
                now = time.monotonic()
                running = children(pid)
                sizes.append((now - began, memory(pid)))
                for kind, due in (("worker", next_worker), ("web", next_web)):
                    if now < due:
                        continue
                    for one in [one for one, name in running.items() if name == kind]:
                        with suppress(ProcessLookupError):
                            os.kill(one, signal.SIGKILL)
                            kills[kind] += 1
                next_worker += given.kill_worker if now >= next_worker else 0
                next_web += given.kill_web if now >= next_web else 0

        watcher = threading.Thread(target=trouble)
        watcher.start()
        pace_until(sent, port, token, contents, rate, until)
        stop.set()
        watcher.join()
    report(given, station, sent, sizes, kills)


def pace_until(
    sent: Sent, port: int, token: str, contents: list[bytes], rate: float, until: float
) -> None:
    due: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    lock = threading.Lock()

    def run() -> None:
        client = Client(port, token)
        while (at := due.get()) is not None:
            request, content = secrets.token_hex(12), random.choice(contents)
            while True:
                try:
                    status, answer = client.inspect(content, request)
                except OSError:
                    status, answer = 0, {}
                if status == 200:
                    break
                with lock:
                    sent.retries += 1
                time.sleep(0.2)
            with lock:
                sent.answered[request] = (answer["id"], answer["verdict"])
                sent.slow.append(time.monotonic() - at)

    def pace() -> None:
        began, number = time.monotonic(), 0
        while time.monotonic() < until:
            time.sleep(max(0, began + number / rate - time.monotonic()))
            due.put(time.monotonic())
            number += 1
        for _ in range(12):
            due.put(None)

    together([pace, *[run] * 12])


def report(
    given: argparse.Namespace,
    station: Path,
    sent: Sent,
    sizes: list[tuple[float, dict[str, int]]],
    kills: dict[str, int],
) -> None:
    database = Database(f"sqlite:///{(station / 'station.sqlite').absolute()}")
    with database.reading() as session:
        rows = session.execute(sa.select(Inspection.request, Inspection.id, Inspection.verdict))
        kept = {request: (number, verdict) for request, number, verdict in rows}
        count = session.scalar(sa.select(sa.func.count()).select_from(Inspection))
    lost = [one for one in sent.answered if one not in kept]
    other = [one for one, told in sent.answered.items() if one in kept and kept[one] != told]
    verdicts = [verdict for _, verdict in sent.answered.values()]
    print(
        f"{len(sent.answered)} answered, {sent.retries} tries again, kills {kills}\n"
        f"lost {len(lost)}, told otherwise than stored {len(other)}, "
        f"rows {count} of {len(kept)} requests\n"
        + ", ".join(f"{name} {verdicts.count(name)}" for name in sorted(set(verdicts)))
    )
    middle, last = np.percentile(sent.slow, [50, 99])
    print(f"median {1000 * middle:.0f} ms, p99 {1000 * last:.0f} ms, kills included")
    kinds = ("supervisor", "web", "worker")  # the learner is a worker, too
    print("memory, MB, by tenth of the time: of all processes; " + ", ".join(kinds))
    for tenth in range(10):
        low, high = (60 * given.minutes * share / 10 for share in (tenth, tenth + 1))
        part = [each for at, each in sizes if low <= at < high]
        if part:
            told = [median(sum(each.values()) for each in part)]
            for kind in kinds:
                mine = ([size for name, size in each.items() if name.startswith(kind)]
                        for each in part)  # fmt: skip
                told.append(median(map(sum, mine)))
            print(f"  {tenth + 1:2}" + "".join(f"{size / 2**20:8.0f}" for size in told))


# -- history ---------------------------------------------------------------------------------------


def history(given: argparse.Namespace, folder: Path) -> None:
    station = folder / "station"
    station.mkdir(parents=True)
    url = given.database or f"sqlite:///{(station / 'station.sqlite').absolute()}"
    database = Database(url)
    database.upgrade()
    began = time.monotonic()
    write_history(database, given.rows)
    with database.writing() as session:
        create_user(session, "measure", PASSWORD, "admin")
    database.close()
    print(f"{given.rows} results written in {time.monotonic() - began:.0f} s")
    with serving(station, "--database", url) as (port, _):
        import httpx

        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        client.follow_redirects = True
        with client:
            found = re.search(r'name="csrf" value="([^"]*)"', client.get("/login").text)
            form = {"name": "measure", "password": PASSWORD, "csrf": found[1] if found else ""}
            client.post("/login", data=form)
            for page in PAGES:
                took = []
                for _ in range(5):
                    at = time.monotonic()
                    answer = client.get(page)
                    took.append(1000 * (time.monotonic() - at))
                size = len(answer.content) // 1024
                told = f"median {median(took):5.0f} ms, worst {max(took):5.0f} ms"
                print(f"  {page:<36}{answer.status_code}  {told}  {size:5} KB")


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    main()
