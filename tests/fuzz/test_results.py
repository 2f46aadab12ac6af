"""What `predict` left in a folder of results, damaged, and gone on with."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.fuzz.mutate import attack, json_mutations, mutations

from offnominal.cli.results import ResultWriter
from offnominal.opinions import sort_out
from offnominal.prediction import Prediction
from offnominal.scoring import Scores

KINDS = frozenset({"json", "csv", "page", "thumbnail"})
RUN = {"model": "0" * 64}


def prediction(name: str) -> Prediction:
    patches = np.ones((2, 2), np.float32)
    image = np.zeros((16, 16, 3), np.uint8)
    heat = np.ones((16, 16), np.float32)
    return Prediction(name, 1.5, heat, Scores(patches), image, 1.0, 0.5, 0.5)


@pytest.mark.parametrize("name", ["results.jsonl", "run.json"])
@pytest.mark.slow
def test_going_on_with_damaged_results(name: str, tmp_path: Path) -> None:
    images = [Path("a.png"), Path("b.png")]
    folder = tmp_path / "out"
    with ResultWriter(folder, KINDS, images, RUN) as sink:
        for image in images:
            sink.write(prediction(str(image)))
    kept = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def go_on() -> None:
        for file, content in kept.items():
            if file.name != name:
                file.write_bytes(content)
        with ResultWriter(folder, KINDS, images, RUN, resume=True) as sink:
            for image in images:
                if str(image) not in sink.done:
                    sink.write(prediction(str(image)))
        rows = [json.loads(line) for line in (folder / "results.jsonl").open("rb")]
        assert {"a.png", "b.png"} <= {row["image"] for row in rows}
        assert sum(row["image"] == "a.png" for row in rows) == 1

    attack(folder / name, go_on, mutations, json_mutations)


def test_damaged_opinions(tmp_path: Path) -> None:
    image, file = tmp_path / "a.png", tmp_path / "opinions.json"
    image.touch()
    one = {"image": str(image), "opinion": "accept", "decision": "reject", "score": 1.5}
    other = {"image_bytes": str(image).encode().hex(), "opinion": "accept"}
    told = {"format": "offnominal opinions 1", "inspected": 9, "opinions": [one, other]}
    file.write_text(json.dumps(told))
    attack(file, lambda: sort_out([str(file)]), mutations, json_mutations)
