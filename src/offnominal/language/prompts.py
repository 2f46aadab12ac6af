"""The prompts that the papers compare images with: states of an object, set into templates."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.clip_text import ClipText

__all__ = ["APRIL_GAN", "CLIP", "WINCLIP", "WINCLIP_RELEASED", "PromptEnsemble", "clip_ac"]


@dataclass(frozen=True)
class PromptEnsemble:
    """Two states of an object in words, and templates that hold them.

    Attributes
    ----------
    normal, abnormal : tuple of str
        States; ``{}`` stands for the name of the object.
    templates : tuple of str
        ``{}`` stands for the state.
    normalise_each : bool
        Whether each prompt's embedding is brought to length 1 before they are averaged. The average
        is, in any case.
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)
    normalise_each: bool = False

    def prompts(self, name: str) -> tuple[list[str], list[str]]:
        """All prompts about an object, those for normal and those for abnormal."""
        normal, abnormal = (
            [template.format(state.format(name)) for state in states for template in self.templates]
            for states in (self.normal, self.abnormal)
        )
        return normal, abnormal

    def features(self, text: ClipText, name: str) -> Tensor:
        """Text features (2, embed_dim), float32, of an object's normal and abnormal state.

        Each is the mean over its prompts, brought to length 1.
        """
        means = []
        for prompts in self.prompts(name):
            embedded = text.encode(prompts)
            if self.normalise_each:
                embedded = F.normalize(embedded, dim=1)
            means.append(embedded.mean(0))
        return F.normalize(torch.stack(means), dim=1)


_GOOD = (
    *("{}", "flawless {}", "perfect {}", "unblemished {}"),
    *("{} without flaw", "{} without defect", "{} without damage"),
)
_FAULTS = ("{} with flaw", "{} with defect", "{} with damage")

# Jeong et al., 2023 (WinCLIP), figure 3 and appendix: 22 templates, each with both articles.
_KINDS = ("cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry")
_INSPECTION = tuple(
    template.format(article)
    for template in (
        *("a " + kind + " photo of {} {{}}" for kind in _KINDS),
        "a photo of {} {{}}",
        "a photo of {} small {{}}",
        "a photo of {} large {{}}",
        "a photo of {} {{}} for visual inspection",
        "a photo of {} {{}} for anomaly detection",
    )
    for article in ("the", "a")
)
# In the reproduction whose figures are quoted most, one template is missing, one stands in the
# place of its neighbour, and each ends in a full stop.
_REPRODUCED = tuple(
    ("a jpeg corrupted photo of the {}" if each == "a jpeg corrupted photo of a {}" else each) + "."
    for each in _INSPECTION
    if each != "a cropped photo of a {}"
)

WINCLIP = PromptEnsemble(_GOOD, ("damaged {}", *_FAULTS), _INSPECTION)
WINCLIP_RELEASED = PromptEnsemble(_GOOD, ("damaged {}", *_FAULTS), _REPRODUCED)

# Chen et al., 2023 (APRIL-GAN): 35 templates after CLIP's own for ImageNet.
_LOOKS = (
    *("bad", "low resolution", "cropped", "bright", "dark", "close-up", "black and white"),
    *("jpeg corrupted", "blurry", "good"),
)
_BOTH = ("a", "the")
_SCENES = ("there is a", "there is the", "this is a", "this is the", "this is one")
APRIL_GAN = PromptEnsemble(
    _GOOD,
    ("damaged {}", "broken {}", *_FAULTS),
    (
        *(f"a {look} photo of {article} {{}}." for look in _LOOKS for article in _BOTH),
        *(f"a photo of {which} {{}}." for which in ("a", "the", "my", "one")),
        *(f"a photo of {a} {kind} {{}}." for kind in ("cool", "small", "large") for a in _BOTH),
        *(f"{scene} {{}} in the scene." for scene in _SCENES),
    ),
    normalise_each=True,
)

# The two baselines of Zhou et al., 2024 (AnomalyCLIP), appendix: one word for each state.
CLIP = PromptEnsemble(("a photo of a normal {}",), ("a photo of an anomalous {}",))


def clip_ac() -> PromptEnsemble:
    """The words of ``CLIP`` in the 80 templates that CLIP's authors give for ImageNet."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    templates = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return PromptEnsemble(("normal {}",), ("anomalous {}",), templates, normalise_each=True)
