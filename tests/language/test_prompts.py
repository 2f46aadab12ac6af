"""The papers' prompt lists, by their counts and their words."""

import pytest

from offnominal.language.prompts import (
    APRIL_GAN,
    CLIP,
    WINCLIP,
    WINCLIP_RELEASED,
    PromptEnsemble,
    clip_ac,
)


@pytest.mark.parametrize(
    ("ensemble", "normal", "abnormal"),
    [
        (CLIP, 1, 1),
        (clip_ac(), 80, 80),
        (WINCLIP, 154, 88),
        (WINCLIP_RELEASED, 147, 84),
        (APRIL_GAN, 245, 175),
    ],
)
def test_counts(ensemble: PromptEnsemble, normal: int, abnormal: int) -> None:
    found = ensemble.prompts("bolt")
    assert [len(prompts) for prompts in found] == [normal, abnormal]
    assert all("bolt" in prompt and "{" not in prompt for part in found for prompt in part)
    if ensemble is not WINCLIP_RELEASED:
        assert all(len(set(part)) == len(part) for part in found)


def test_reproduction_repeats_a_template() -> None:
    assert [len(set(part)) for part in WINCLIP_RELEASED.prompts("x")] == [140, 80]
    assert "a cropped photo of a {}." not in WINCLIP_RELEASED.templates
    assert "a cropped photo of a {}" in WINCLIP.templates
    assert all(template.endswith(".") for template in WINCLIP_RELEASED.templates)


def test_words() -> None:
    assert CLIP.prompts("metal_nut") == (
        ["a photo of a normal metal_nut"],
        ["a photo of an anomalous metal_nut"],
    )
    assert "a bad photo of a normal tile." in clip_ac().prompts("tile")[0]
    assert "there is the broken tile in the scene." in APRIL_GAN.prompts("tile")[1]
    assert "a photo of the small tile without damage" in WINCLIP.prompts("tile")[0]


def test_braces_in_a_name_are_letters() -> None:
    assert "a photo of a normal {0}" in CLIP.prompts("{0}")[0]
