"""Models that workers helped to fit are those of one process, to the byte."""

from pathlib import Path

import pytest
from tests.cli.conftest import offnominal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("anomalydino", []),
        ("patchcore", ["--coreset", "0.2"]),
        ("padim", ["--dimensions", "8"]),
        ("gaussian", []),
        ("dn2", []),
        ("subspacead", ["--rotations", "0,20", "--nearest", "0.5"]),
    ],
)
def test_the_model_is_that_of_one_process(
    parts: Path, tmp_path: Path, method: str, options: list[str]
) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for number, image in enumerate(sorted((parts / "fabric" / "train" / "good").iterdir())):
        (good / f"{number}.png").symlink_to(image)
    (good / "1-copy.png").symlink_to(good / "1.png")  # numbers are not places in the list
    (good / "0-broken.png").write_bytes(b"no image")
    command = ["fit", good, "--method", method, "--backbone", "builtin", *options, "-o"]
    assert offnominal(*command, tmp_path / "alone.offn").returncode == 3
    done = offnominal(*command, tmp_path / "several.offn", "--workers", 1)
    assert done.returncode == 3, done.stderr
    alone, several = (tmp_path / f"{name}.offn" for name in ("alone", "several"))
    assert several.read_bytes() == alone.read_bytes()
    assert not (tmp_path / "several.offn.parts").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "dinomaly"], "not with --method dinomaly, whose learning is no sum"),
        (["--method", "padim", "--reduction", "pca"], "not with --reduction pca"),
        (["--refine", "auto"], "not with --defects, --categories or --refine"),
    ],
)
def test_what_cannot_be_shared_is_said(
    parts: Path, tmp_path: Path, options: list[str], told: str
) -> None:
    good = parts / "fabric" / "train" / "good"
    done = offnominal("fit", good, "-o", tmp_path / "x.offn", "--workers", 2, *options)
    assert done.returncode == 2
    assert told in done.stderr


def test_what_workers_saw_is_what_is_added(parts: Path, tmp_path: Path) -> None:
    from offnominal import AnomalyDINO
    from offnominal.paths import find_images, stamp
    from offnominal.scale.engines import Serial
    from offnominal.scale.looking import Looker, look_by_workers
    from offnominal.scale.parts import Store

    files = find_images(parts / "fabric" / "train" / "good")[:3]
    options = {"backbone": "builtin", "rotations": "none", "engine": "torch"}
    numbers = {str(file): number for number, file in enumerate(files)}
    looker = Looker("anomalydino", options, numbers, Store(str(tmp_path / "parts")))
    looked_at = look_by_workers(looker, list(numbers), stamp, Serial(), lambda done: None)
    told = []

    def watched(number: int) -> list[object]:
        told.append(number)
        return looked_at(number)

    several = AnomalyDINO(**options)
    several.looked_at = watched
    several.fit(files).save(tmp_path / "several.offn")
    AnomalyDINO(**options).fit(files).save(tmp_path / "alone.offn")
    assert told == [0, 1, 2]
    assert (tmp_path / "several.offn").read_bytes() == (tmp_path / "alone.offn").read_bytes()


def test_only_what_workers_saw_is_taken_away(tmp_path: Path) -> None:
    from offnominal.scale.looking import forget_looks

    for folder in ("looked", "more"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    ours = tmp_path / "mine" / "looked" / "000000000000-008-0123456789ab.npz"
    for file in (ours, ours.with_name("options.json"), tmp_path / "mine" / "more" / "notes.txt"):
        file.write_text("{}")
    forget_looks(str(tmp_path / "mine"))
    assert [one.name for one in tmp_path.rglob("*")] == ["mine", "more", "notes.txt"]
    forget_looks(str(tmp_path / "none"))
