"""From requests to cells."""

from pathlib import Path

import pytest

from offnominal.benchmark.grid import parse_sets
from offnominal.benchmark.plan import Request, make_plan
from offnominal.datasets import Dataset, open_dataset
from offnominal.errors import OptionError, WeightsError

BUILTIN = ("builtin",)


@pytest.fixture(scope="module")
def dataset(parts: Path) -> Dataset:
    return open_dataset(parts)


def test_every_combination_once(dataset: Dataset) -> None:
    request = Request(
        shots=(1, 4, None),
        seeds=2,
        backbones=BUILTIN,
        sets={"rotations": ["none", "agnostic"], "aggregate": ["top1", "max", "top1"]},
    )
    work = make_plan([dataset], request)
    # Two categories, (2 + 2 + 1) draws, two rotations and two statistics.
    assert len(work.cells) == 2 * 5 * 2 * 2
    assert len({cell.name for cell in work.cells}) == len(work.cells)
    # The two statistics share a fit, and stand together.
    groups = [cell.group for cell in work.cells]
    assert len(set(groups)) == 2 * 5 * 2
    assert groups[::2] == groups[1::2]
    assert work.impossible == []


def test_a_name_is_the_same_in_every_run_and_tells_what_it_is(dataset: Dataset) -> None:
    names = [
        make_plan([dataset], Request(shots=(4,), seeds=1, backbones=BUILTIN)).cells[0].name
        for _ in range(2)
    ]
    assert names[0] == names[1]
    assert names[0].startswith("parts-fabric-anomalydino-4shot-seed0-")


def test_what_changes_the_result_changes_the_name(dataset: Dataset, tmp_path: Path) -> None:
    def name(changed: Dataset = dataset, **request: object) -> str:
        asked = {"shots": (4,), "seeds": 1, "backbones": BUILTIN} | request
        return make_plan([changed], Request(**asked)).cells[0].name

    fewer = Dataset("parts", dataset.root, dataset.layout, dataset.samples[1:])
    names = [
        name(),
        name(shots=(2,)),
        name(sampling="first"),
        name(sets={"smoothing": [0.0]}),
        name(backbones=("builtin-aligned",)),
        name(cached=False),
        name(fewer),
    ]
    assert len(set(names)) == len(names)
    # Where the data set lies is not part of it.
    assert name(Dataset("parts", dataset.root, "x", dataset.samples)) == names[0]


def test_a_method_without_references_runs_once(dataset: Dataset) -> None:
    request = Request(
        methods=("anomalydino", "anomalydino-batched"),
        shots=(0, 1),
        seeds=3,
        backbones=BUILTIN,
        sets={"rotations": ["none"]},
    )
    work = make_plan([dataset], request)
    drawn = [(c.method, c.shots, c.seed) for c in work.cells if c.category == "fabric"]
    assert drawn == [
        ("anomalydino", 1, 0),
        ("anomalydino", 1, 1),
        ("anomalydino", 1, 2),
        ("anomalydino-batched", 0, 0),
    ]
    assert work.impossible == ["anomalydino needs references: 0 shots are left out for it"]


def test_what_cannot_be_drawn_is_said_and_the_rest_goes_on(dataset: Dataset) -> None:
    # There are six training images: the third lot of three does not exist.
    request = Request(shots=(3, 99), seeds=3, sampling="first", backbones=BUILTIN)
    work = make_plan([dataset], request)
    assert len(work.cells) == 2 * 2
    assert len(work.impossible) == 2 * (1 + 3)
    assert "fabric, 3 shots, seed 2" in work.impossible[0]


def test_nothing_to_run_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(OptionError, match="nothing can be run"):
        make_plan([dataset], Request(shots=(99,), backbones=BUILTIN))
    with pytest.raises(OptionError, match="two data sets are called parts"):
        make_plan([dataset, dataset], Request(backbones=BUILTIN))
    with pytest.raises(OptionError, match="--seeds 0"):
        make_plan([dataset], Request(seeds=0, backbones=BUILTIN))
    with pytest.raises(OptionError, match="--shots -1"):
        make_plan([dataset], Request(shots=(-1,), backbones=BUILTIN))
    with pytest.raises(OptionError, match="aggregate"):
        make_plan([dataset], Request(backbones=BUILTIN, sets={"aggregate": ["best"]}))
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        make_plan([dataset], Request(backbones=("resnet18=absent.safetensors",)))


def test_weights_are_known_by_their_content(dataset: Dataset, mobilenet: Path) -> None:
    for asked in (str(mobilenet), f"mobilenetv2_100={mobilenet}"):
        work = make_plan([dataset], Request(seeds=1, backbones=(asked,)))
        options = work.cells[0].options
        assert options["backbone"].startswith("mobilenetv2_100")
        assert work.files == {options["weights"]: str(mobilenet.absolute())}


def test_each_category_has_the_name_of_its_parts(dataset: Dataset) -> None:
    names = {name: f"drawn {name}" for name in dataset.categories[1:]}
    asked = Request(methods=("clip", "anomalydino"), shots=(0, 1), seeds=1, class_names=names)
    work = make_plan([dataset], asked)
    told = {
        (cell.category, cell.options["class_name"]) for cell in work.cells if cell.method == "clip"
    }
    first = dataset.categories[0]
    assert told == {(first, first), *names.items()}
    assert all("class_name" not in c.options for c in work.cells if c.method == "anomalydino")


def test_learned_files_are_known_by_their_content(dataset: Dataset, tmp_path: Path) -> None:
    cells = []
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
        asked = Request(methods=("april-gan",), shots=(0,), sets={"projections": [tmp_path / name]})
        work = make_plan([dataset], asked)
        cells.append(work.cells[0])
        assert work.files == {cells[-1].options["projections"]: str(tmp_path / name)}
    assert cells[0].name == cells[1].name != cells[2].name


def test_a_method_has_backbones_and_values_of_its_own(dataset: Dataset) -> None:
    asked = Request(
        methods=("clip", "anomalydino", "patchcore"),
        shots=(0, 1),
        seeds=1,
        backbones=("builtin", "clip:open_clip:ViT-B-16", "patchcore:resnet18"),
        sets={
            "resolution": [224],
            "patchcore:resolution": [256, 320],
            "clip:positions": ["bicubic"],
        },
    )
    cells = make_plan([dataset], asked).cells
    found = {(c.method, c.options["backbone"], c.options["resolution"]) for c in cells}
    assert found == {
        ("clip", "open_clip:ViT-B-16", 224),
        ("anomalydino", "builtin", 224),
        ("patchcore", "resnet18", 256),
        ("patchcore", "resnet18", 320),
    }
    assert {c.options["positions"] for c in cells if c.method == "clip"} == {"bicubic"}
    with pytest.raises(OptionError, match="--backbone clip:builtin: clip is not among the methods"):
        make_plan([dataset], Request(backbones=("clip:builtin",)))


def test_a_backbone_that_a_method_cannot_use_is_left_out(dataset: Dataset) -> None:
    backbones = ("resnet18", "open_clip:ViT-B-16", "mae_vitb16")
    asked = Request(methods=("winclip", "patchcore"), shots=(1,), seeds=1, backbones=backbones)
    work = make_plan([dataset], asked)
    found = {(cell.method, cell.options["backbone"]) for cell in work.cells}
    assert found == {("winclip", "open_clip:ViT-B-16"), *(("patchcore", b) for b in backbones)}
    assert [text.partition(":")[0] for text in work.impossible] == [
        "winclip cannot use resnet18",
        "winclip cannot use mae_vitb16",
    ]
    with pytest.raises(
        OptionError, match=r"nothing can be run: winclip cannot use resnet18.*open_clip:"
    ):
        make_plan([dataset], Request(methods=("winclip",), shots=(0,), backbones=("resnet18",)))


def test_a_method_without_a_network_is_run_whatever_the_backbone(dataset: Dataset) -> None:
    asked = Request(("chat",), (0,), backbones=("resnet18", "builtin"), sets={"model": ["small"]})
    work = make_plan([dataset], asked)
    assert len(work.cells) == len(dataset.categories)
    assert work.impossible == []


def test_sets_may_be_for_one_method() -> None:
    methods = ("winclip", "coop")
    found = parse_sets(
        ["coop:prompts=a.safetensors", "winclip:prompts=paper,reproduction"], methods
    )
    assert found == {
        "coop:prompts": ["a.safetensors"],
        "winclip:prompts": ["paper", "reproduction"],
    }
    with pytest.raises(OptionError, match="clip is not among the methods to run, winclip, coop"):
        parse_sets(["clip:positions=bicubic"], methods)
    with pytest.raises(OptionError, match="coop has no option 'windows'"):
        parse_sets(["coop:windows=2"], methods)
