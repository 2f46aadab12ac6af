"""Results in an object store that fails one call in ten: a real server, on loopback."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import offnominal

from offnominal.scale.parts import Parts, Store
from offnominal.scale.scoring import fetch
from offnominal.scale.shards import cut

pytestmark = pytest.mark.scale

EVERY = 10  # calls, of which one fails


class Failing:
    """A server's application of which every tenth call fails, half of them after their work."""

    def __init__(self, application: Any) -> None:
        self.application, self.calls, self.failed = application, 0, 0
        self.lock = threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        with self.lock:
            self.calls += 1
            fails = self.calls % EVERY == 0
            self.failed += fails
            late = self.failed % 2
        if fails and late:
            list(self.application(environ, lambda *all: None))
        if fails:
            if length := int(environ.get("CONTENT_LENGTH") or 0):
                environ["wsgi.input"].read(0 if late else length)
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"]
        return self.application(environ, start_response)


@pytest.fixture(scope="module")
def store() -> Iterator[Failing]:
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    from werkzeug.serving import make_server

    failing = Failing(server.DomainDispatcherApplication(server.create_backend_app))
    serving = make_server("127.0.0.1", 0, failing, threaded=True)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{serving.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem().mkdir("results")
        yield failing
    serving.shutdown()
    thread.join()


def test_parts_are_whole_though_calls_fail(store: Failing) -> None:
    parts = Parts(Store("s3://results/plain"))
    shards = list(cut([f"{number:04d}" for number in range(400)], lambda name: "", 8))
    before = store.failed
    for shard in shards:
        parts.write(shard, [f'{{"image": "{item}"}}' for item in shard.items])
        assert parts.written(shard)
    parts.look()
    assert all(map(parts.has, shards))
    lines = list(parts.lines(parts.names))
    assert lines == [f'{{"image": "{number:04d}"}}' for number in range(400)]
    assert store.failed - before > 10


def test_images_and_results_of_a_store(
    store: Failing, tmp_path: Path, parts: Path, fabric_model: Path
) -> None:
    images = sorted((parts / "fabric" / "test").rglob("*.png"))
    bucket = Store("s3://results/images")
    for number, image in enumerate(images):
        bucket.write(f"{number:02d}.png", image.read_bytes())
    names = [f"s3://results/images/{number:02d}.png" for number in range(len(images))]
    (tmp_path / "list.txt").write_text("\n".join([*names, "s3://results/images/none.png"]))
    out = "s3://results/run"
    command = ["predict", fabric_model, tmp_path / "list.txt", "-o", out, "--save", "map,json,csv"]
    done = offnominal(*command, "--workers", 1)
    assert done.returncode == 3, done.stderr
    for name in ("results.jsonl", "results.csv"):
        fetch(f"{out}/{name}", str(tmp_path / name))
    alone = offnominal("predict", fabric_model, *images, "-o", tmp_path / "alone")
    assert alone.returncode == 0
    rows, wanted = (
        [line.split('"score": ')[1].split(', "file"')[0] for line in
         (folder / "results.jsonl").read_text().splitlines() if '"score"' in line]
        for folder in (tmp_path, tmp_path / "alone")
    )  # fmt: skip
    assert rows == wanted
    assert "cannot be fetched" in (tmp_path / "results.jsonl").read_text().splitlines()[-1]
    assert len(Store(out).names("maps")) == len(images)
    assert store.failed > 10
