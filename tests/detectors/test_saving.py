"""Saved detectors: whole, exact, atomic, and precise about what is wrong with a file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from offnominal import AnomalyDINO, load, modelfile
from offnominal.errors import ModelFileError, NotFittedError, OptionError, WeightsError
from offnominal.modelfile import FORMAT, read_header


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rewrite(
    source: Path, target: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: object
) -> Path:
    """A copy of a model file with another header, and with checksums of what it holds."""
    held = tensors_of(source) if tensors is None else tensors
    arrays = {name: tensor.numpy() for name, tensor in held.items()}
    modelfile.write(target, read_header(source) | changes, arrays)
    return target


def test_loaded_detector_predicts_the_same_bits(fabric_model: Path, parts: Path) -> None:
    files = sorted((parts / "fabric" / "train" / "good").iterdir())
    fitted = AnomalyDINO(backbone="builtin", rotations="none", false_reject=0.2).fit(files)
    loaded = load(fabric_model, device="cpu")
    assert isinstance(loaded, AnomalyDINO)
    test = sorted((parts / "fabric" / "test").rglob("*.png"))[:3]
    for a, b in zip(fitted.stream(test), loaded.stream(test), strict=True):
        assert (a.score, a.threshold, a.pixel_threshold, a.p_value) == (
            b.score, b.threshold, b.pixel_threshold, b.p_value,
        )  # fmt: skip
        assert np.array_equal(a.anomaly_map, b.anomaly_map)
    assert loaded.masking_test_ == fitted.masking_test_
    assert loaded.references == fitted.references


def test_header_says_what_the_file_depends_on(fabric_model: Path) -> None:
    header = read_header(fabric_model)
    assert header["format"] == FORMAT
    assert header["method"] == "anomalydino"
    assert header["backbone"]["name"] == "builtin"
    assert header["options"]["false_reject"] == 0.2
    assert header["options"]["sixteen_bit"] == "range"
    known = header["references"]["known"]
    assert [list(one) for one in known] == [["file", "digest", "size", "active", "category"]] * 6
    assert [step["what"] for step in header["references"]["steps"]] == ["fit"]
    assert header["calibration"]["references"]["kind"] == "leave-one-out"
    assert header["learned"]["masks_"] is False


def test_sixteen_bit_scaling_is_applied_the_same_after_loading(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = [
        (1000 + 200 * rng.random((96, 96)) + 300 * (np.arange(96) % 16 > 7)).astype(np.uint16)
        for _ in range(3)
    ]
    options = {"backbone": "builtin", "rotations": "none", "resolution": 96}
    wide = AnomalyDINO(**options, sixteen_bit="0.5,99.5").fit(good[:2])
    wide.save(tmp_path / "wide.offn")
    loaded = load(tmp_path / "wide.offn", device="cpu")
    assert loaded.sixteen_bit == "0.5,99.5"
    [a], [b] = wide.predict(good[2]), loaded.predict(good[2])
    assert a.score == b.score
    assert a.image.max() == 255
    [dark] = AnomalyDINO(**options).fit(good[:2]).predict(good[2])
    assert dark.image.max() < 10  # of 65,535 it uses next to nothing


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_files(fabric_model: Path, tmp_path: Path, kept: float) -> None:
    content = fabric_model.read_bytes()
    path = tmp_path / "cut.offn"
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(ModelFileError, match=r"cut.offn: truncated, or not"):
        load(path)


def test_foreign_newer_and_unknown_files(fabric_model: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "weights.offn"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(ModelFileError, match=r"not an Offnominal model.*--weights"):
        load(foreign)
    newer = rewrite(fabric_model, tmp_path / "newer.offn", format=FORMAT + 1, version="9.9")
    with pytest.raises(ModelFileError, match=r"written by Offnominal 9.9.*install a newer one"):
        load(newer)
    older = rewrite(fabric_model, tmp_path / "older.offn", format=2, version="0.3")
    with pytest.raises(ModelFileError, match=r"Offnominal 0.3 in format 2.*fit it anew"):
        load(older)
    unknown = rewrite(fabric_model, tmp_path / "unknown.offn", method="oracle")
    with pytest.raises(ModelFileError, match="'oracle'"):
        load(unknown)
    for name, value in (
        ("options", {"colour": "red"}),
        ("learned", {}),
        ("references", {"known": []}),
        ("references", {"known": [{"name": "a.png"}], "steps": []}),
        ("calibration", {}),
        ("format", "three"),
        ("learned", {"masks_": True, "_read": 1}),
        ("learned", {"predict": 1}),
        ("options", [1]),
        ("options", {"tile": "square"}),
        ("options", {"resolution": 100_000_000}),
        ("method", []),
        ("backbone", "x"),
    ):
        damaged = rewrite(fabric_model, tmp_path / "damaged.offn", **{name: value})
        with pytest.raises(
            ModelFileError, match=r"damaged.offn: .*(damaged|do not fit|in f|which backbone)"
        ):
            load(damaged)
    with pytest.raises(ModelFileError, match="does not exist"):
        load(tmp_path / "none.offn")
    with pytest.raises(ModelFileError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"bank.rows": None},
        {"bank.counts": None},
        {"bank.rows": torch.zeros(10, 59)},
        {"bank.patch": torch.zeros(3, dtype=torch.int32)},
        {"bank.loo_distance": torch.zeros(3, dtype=torch.int64)},
        {"bank.colour": torch.zeros(3)},
        {"stranger_": torch.zeros(3)},
        {"stranger.rows": torch.zeros(3)},
        {"calibration.references.patches": torch.zeros(3)},
        {"calibration.references.peaks": None},
        {"bank.rows": torch.full((4704, 60), torch.nan)},
        {"calibration.references.images": torch.full((6,), torch.inf, dtype=torch.float64)},
        {"calibration.references.images": torch.full((6,), torch.nan, dtype=torch.float64)},
        {"bank.reference": torch.full((4704,), 6, dtype=torch.int32)},
        {"bank.reference": torch.full((4704,), -1, dtype=torch.int32)},
        {"centre_": torch.zeros(3)},
        {"scale_": torch.zeros(1)},
    ],
    ids=str,
)
def test_wrong_tensors(
    change: dict[str, torch.Tensor | None], fabric_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.offn"
    tensors = {n: t for n, t in (tensors_of(fabric_model) | change).items() if t is not None}
    rewrite(fabric_model, path, tensors)
    with pytest.raises(ModelFileError, match=r"wrong.offn: its contents do not fit its method"):
        load(path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 0.9999])
def test_a_flipped_bit_anywhere_is_found(fabric_model: Path, tmp_path: Path, place: float) -> None:
    content = bytearray(fabric_model.read_bytes())
    content[int(place * len(content))] ^= 4
    path = tmp_path / "flipped.offn"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"flipped.offn: .* not as written \(checksum\)"):
        load(path)


def test_a_flipped_bit_of_a_large_bank_is_found_before_it_is_used(
    fabric_model: Path, tmp_path: Path, parts: Path
) -> None:
    """Such a bank is mapped, and only read when it is looked into."""
    tensors, path = tensors_of(fabric_model), tmp_path / "large.offn"
    rows = 6 * 2**20 // (4 * tensors["bank.rows"].shape[1])
    for name in [name for name in tensors if name.startswith("bank.")]:
        column = tensors[name]
        tensors[name] = column.repeat(1 + rows // len(column), *([1] * (column.ndim - 1)))
    rewrite(fabric_model, path, tensors)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    detector = load(path, device="cpu")
    test = next((parts / "fabric" / "test").rglob("*.png"))
    for use in (
        lambda: detector.predict(test),
        lambda: detector.predict(test),
        lambda: detector.save(tmp_path / "again.offn"),
        lambda: detector.rescored(aggregate="max"),
        lambda: detector.add([test]),
        lambda: detector(torch.zeros(1, 3, 64, 64)),
    ):
        with pytest.raises(ModelFileError, match=r"large.offn: bank.rows not as written"):
            use()


def test_a_changed_header_is_found(fabric_model: Path, tmp_path: Path) -> None:
    content = fabric_model.read_bytes()
    path = tmp_path / "changed.offn"
    told = rb"\"false_reject\": 0.2"
    assert told in content
    path.write_bytes(content.replace(told, rb"\"false_reject\": 0.3"))
    with pytest.raises(ModelFileError, match=r"changed.offn: its header is not as it was written"):
        load(path)


def test_models_follow_the_umask(fabric_model: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        load(fabric_model, device="cpu").save(tmp_path / "m.offn")
    finally:
        os.umask(old)
    assert (tmp_path / "m.offn").stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
def test_other_weights_are_refused(parts: Path, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    for path in (right, wrong):
        save_file(timm.create_model("mobilenetv2_100", num_classes=0).state_dict(), path)
    files = sorted((parts / "fabric" / "train" / "good").iterdir())[:1]
    options = {"backbone": "mobilenetv2_100", "rotations": "none", "resolution": 64}
    detector = AnomalyDINO(**options, weights=str(right))
    detector.fit(files).save(tmp_path / "m.offn")
    load(tmp_path / "m.offn", device="cpu")
    with pytest.raises(ModelFileError, match=r"other weights of mobilenetv2_100.*--weights"):
        load(tmp_path / "m.offn", weights=str(wrong))
    moved = right.rename(right.with_stem("moved"))
    with pytest.raises(WeightsError, match="does not exist"):
        load(tmp_path / "m.offn")
    loaded = load(tmp_path / "m.offn", weights=str(moved), device="cpu")
    assert loaded.predict(files)[0].score == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_failed_save_leaves_the_old_file(fabric_model: Path, tmp_path: Path) -> None:
    detector = load(fabric_model, device="cpu")
    path = tmp_path / "model.offn"
    path.write_bytes(b"mine")
    with pytest.raises(OptionError, match="is there, and no model"):
        detector.save(path)
    assert path.read_bytes() == b"mine"
    old = fabric_model.read_bytes()
    path.write_bytes(old)
    with pytest.raises(ModelFileError, match="cannot be written"):
        detector.save(tmp_path / "absent" / "model.offn")
    # A limit on file sizes stands in for a full disk.
    code = (
        "import resource, signal, sys; from offnominal import load\n"
        "detector = load(sys.argv[1], device='cpu')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "detector.save(sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(fabric_model), str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "ModelFileError" in done.stderr
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["model.offn"]


def test_nothing_to_save_before_fit(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        AnomalyDINO(backbone="builtin").save(tmp_path / "m.offn")


@pytest.mark.slow
def test_a_large_bank_is_mapped_not_read(fabric_model: Path, tmp_path: Path) -> None:
    """Loading 50 MB must not bring 50 MB into memory."""
    big = tmp_path / "big.offn"
    tensors = tensors_of(fabric_model)
    rows = 50 * 2**20 // (4 * tensors["bank.rows"].shape[1])
    for name, column in tensors.items():
        if name.startswith("bank."):
            tensors[name] = column.new_zeros((rows, *column.shape[1:]))
    rewrite(fabric_model, big, tensors)
    with big.open("rb+") as file:
        os.fsync(file.fileno())  # pages that are still to be written count as dirty
    code = (
        "import sys; from offnominal import load\n"
        "load(sys.argv[1], device='cpu')\n"
        "def private():\n"
        "    text = open('/proc/self/smaps_rollup').read()\n"
        "    return int(text.split('Private_Dirty:')[1].split()[0])\n"
        "before = private()\n"
        "detector = load(sys.argv[2], device='cpu')\n"
        "print(private() - before, len(detector.bank))\n"
    )
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system does not say how much memory is mapped")
    done = subprocess.run(
        [sys.executable, "-c", code, str(fabric_model), str(big)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, length = map(int, done.stdout.split())
    assert length == rows
    assert grown < 12 * 1024, f"{grown} KiB of private memory for a mapped bank"


@pytest.mark.parametrize("part", ["images", "peaks", "patches"])
def test_scores_that_are_no_numbers_are_refused(
    fabric_model: Path, tmp_path: Path, part: str
) -> None:
    """A threshold that is not finite would let every part pass."""
    tensors = tensors_of(fabric_model)
    name = f"calibration.references.{part}"
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    rewrite(fabric_model, tmp_path / "nan.offn", tensors)
    with pytest.raises(ModelFileError, match="not finite"):
        load(tmp_path / "nan.offn")
