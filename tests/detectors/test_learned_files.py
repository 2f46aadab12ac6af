"""Options that name a file: the benchmark knows the file by what is in it."""

from pathlib import Path

import pytest
from tests.seeded import CLIP_TINY, save_clip

from offnominal.benchmark.plan import Request, make_plan
from offnominal.datasets import open_dataset
from offnominal.detectors.registry import detector_class
from offnominal.errors import WeightsError
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts, Projections
from offnominal.language.learnedfile import LearnedFile, write_learned

KINDS = {
    "anomalyclip": ("prompts", AnomalyCLIPPrompts, (64, 4, 2, 2)),
    "coop": ("prompts", CoOpPrompts, (64, 4)),
    "april-gan": ("projections", Projections, (64, 32, 4)),
}


@pytest.mark.parametrize("method", KINDS)
def test_a_plan_holds_the_digest_of_what_was_learned(
    method: str, parts: Path, tmp_path: Path
) -> None:
    option, kind, sizes = KINDS[method]
    assert detector_class(method).file_options == (option,)
    weights = save_clip(tmp_path, CLIP_TINY, "tiny")
    one, two, other = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "other"))
    learned = kind(*sizes)
    for path in (one, two):
        write_learned(path, learned, LearnedFile(method, learned.settings()))
    learned = kind(*sizes)
    write_learned(other, learned, LearnedFile(method, learned.settings()))
    dataset = open_dataset(parts, categories=["fabric"])
    plans = [
        make_plan(
            [dataset],
            Request(
                methods=(method,),
                shots=(0,),
                seeds=1,
                backbones=(str(weights),),
                sets={option: [str(path)]},
            ),
        )
        for path in (one, two, other)
    ]
    [first], [second], [third] = (plan.cells for plan in plans)
    assert first.name == second.name, "the same prompts under another name"
    assert first.name != third.name
    assert plans[2].files[third.options[option]] == str(other)
    with pytest.raises(WeightsError, match=r"absent\.safetensors: cannot be read"):
        make_plan(
            [dataset],
            Request(methods=(method,), sets={option: [str(tmp_path / "absent.safetensors")]}),
        )
