"""A real cluster of several raylets on this machine, which lose workers and one of themselves."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import offnominal
from tests.scale.test_processes import contents, items_of
from tests.scale.work import Writes

from offnominal.scale.actors import Actors
from offnominal.scale.shards import cut, run_shards

pytestmark = pytest.mark.scale
os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [root, str(Path(root, "src")), os.environ.get("PYTHONPATH", "")]
    )
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def run(cluster: Any, function: Writes, items: list[str], most: int) -> list[str]:
    folder = Path(function.folder)
    ended = run_shards(
        function, cut(items, lambda name: "", most), Actors(cluster.address),
        lambda shard: False, lambda shard: (folder / shard.name).exists(),
        lambda shard, reason: given_up.extend(shard.items),
    )  # fmt: skip
    given_up: list[str] = []
    found = [item for shard, _ in ended for item in shard.items]
    assert sorted(found) == items
    return given_up


def test_a_deadly_item_is_found_and_the_rest_is_done(cluster: Any, tmp_path: Path) -> None:
    items = [f"{number:02d}" for number in range(6)]
    assert run(cluster, Writes(str(tmp_path), poison=("03",)), items, 2) == ["03"]
    assert items_of(tmp_path) == [one for one in items if one != "03"]


def test_workers_and_a_raylet_are_killed(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "out").mkdir()
    items = [f"{number:04d}" for number in range(300)]
    over, killed, draw = threading.Event(), [], random.Random(0)

    def kill() -> None:
        # With the second machine gone its actor has no room, and the shard that it was at is not
        # to wait for it.
        over.wait(8.0)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        while not over.wait(5.0):
            there = [int(one.name) for one in (tmp_path / "pids").iterdir()]
            alive = [pid for pid in there if Path(f"/proc/{pid}").exists()]
            for pid in draw.sample(alive, min(1, len(alive))):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        function = Writes(str(tmp_path / "out"), 0.05, pids=str(tmp_path / "pids"))
        assert run(cluster, function, items, 8) == []
    finally:
        over.set()
        killer.join()
        cluster.add_node(num_cpus=1)
    assert killed
    assert items_of(tmp_path / "out") == items


def test_results_are_those_of_one_process(
    cluster: Any, tmp_path: Path, parts: Path, fabric_model: Path
) -> None:
    images = parts / "fabric" / "test"
    command = ["predict", fabric_model, images, "--save", "overlay,map,json,csv,page", "-o"]
    assert offnominal(*command, tmp_path / "alone").returncode == 0
    done = offnominal(*command, tmp_path / "ray", "--ray", cluster.address)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
