"""What is learned on other images: prompts, or linear layers behind the image tower.

Prompts are vectors in the place of words, which a frozen text tower reads. AnomalyCLIP's know no
object: one pair, normal and abnormal, serves everything (Zhou et al., ICLR 2024, arXiv 2310.18961).
CoOp's stand beside the name of the object (Zhou et al., IJCV 2022, arXiv 2109.01134). APRIL-GAN's
layers bring patch tokens to where CLIP's texts are (Chen et al., 2023, arXiv 2305.17382).
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.backbones.clip_text import ClipText
from offnominal.errors import OptionError

__all__ = [
    "AnomalyCLIPPrompts",
    "CoOpPrompts",
    "LearnedModule",
    "LearnedPrompts",
    "Position",
    "Projections",
]

Position = Literal["end", "middle", "front"]

_DEVIATION = 0.02  # of the prompts' first values, in both papers' code
_STATES = ("normal", "anomalous")


class LearnedModule(nn.Module):
    """What a file of ``offnominal train`` holds."""

    method: ClassVar[str]  # the detector that uses it
    holds: ClassVar[str]  # as messages call it: prompts, layers
    option: ClassVar[str]  # the detector's option that names the file

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments but the generator, plain values that a file keeps."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if name != "generator"}


class LearnedPrompts(LearnedModule):
    """A pair of prompts, normal and abnormal, some of whose vectors are parameters."""

    holds: ClassVar[str] = "prompts"
    option: ClassVar[str] = "prompts"

    width: int

    def start_from(self, text: ClipText, words: str) -> None:
        """Begin with the embeddings of words, such as ``a photo of a``, instead of chance.

        Raises
        ------
        OptionError
            If the method does not, or the words are not as many tokens as there are vectors.
        """
        raise OptionError(f"the prompts of {self.method} begin by chance, not with {words!r}")

    def forward(self, text: ClipText, names: Sequence[str]) -> Tensor:
        """Text features (n, 2, embed_dim), float32, of both states for each of n names.

        Normal and abnormal, not normalised; gradients flow through the tower to the parameters.
        Object-agnostic prompts give the same for each name.
        """
        raise NotImplementedError

    @staticmethod
    def _frozen(text: ClipText, sentences: Sequence[str], like: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the sentences' tokens, and where each sentence ends."""
        ids = text.tokenize(sentences).to(like.device)
        ends = text.ends(ids)
        # The text tower looks back only: what follows the end token cannot reach it.
        return text.embed_ids(ids[:, : int(ends.max()) + 1]), ends


class AnomalyCLIPPrompts(LearnedPrompts):
    """Object-agnostic prompts: ``[V1]...[V12] object.`` and ``[W1]...[W12] damaged object.``

    Deep prompts are tokens written over positions 1 to 4 at the input of the second and later
    blocks of the text tower (section 3.2 of the paper).

    Parameters
    ----------
    width : int
        Of the text tower.
    length : int
        Vectors in the place of words in each prompt; the paper's is 12.
    depth : int
        Text blocks with tokens of their own: the first takes the prompts themselves, the others
        deep prompts. The paper's is 9; 1 does without.
    deep_length : int
        Tokens of a deep prompt; the paper's is 4.
    generator : torch.Generator or None
        Draws the first values.
    """

    method: ClassVar[str] = "anomalyclip"

    def __init__(
        self,
        width: int,
        length: int = 12,
        depth: int = 9,
        deep_length: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_whole(length=length, depth=depth, deep_length=deep_length)
        self.width, self.length, self.depth, self.deep_length = width, length, depth, deep_length
        self.normal = _drawn((length, width), generator)
        self.abnormal = _drawn((length, width), generator)
        self.deep = nn.ParameterList(
            [_drawn((deep_length, width), generator) for _ in range(depth - 1)]
        )

    def texts(self) -> list[str]:
        """Both prompts in words; an X stands for each learned vector, as in the released code."""
        places = " ".join(["X"] * self.length)
        return [f"{places} object.", f"{places} damaged object."]

    def forward(self, text: ClipText, names: Sequence[str]) -> Tensor:
        """Text features of both states, the same for each name; see :class:`LearnedPrompts`."""
        frozen, ends = self._frozen(text, self.texts(), self.normal)
        learned = torch.stack([self.normal, self.abnormal])
        embeddings = torch.cat([frozen[:, :1], learned, frozen[:, 1 + self.length :]], dim=1)
        # The released code rounds deep prompts to half precision, each prompt's copy of them, and
        # so their gradients too. Its prompts were trained like that, so it is kept.
        deep = [each.expand(2, -1, -1).half().float() for each in self.deep]
        features = text.encode_embedded(embeddings, ends, deep)
        return features.expand(len(names), -1, -1)


class CoOpPrompts(LearnedPrompts):
    """LearnedModule context around the class names ``normal NAME`` and ``anomalous NAME``.

    Zhou et al., 2022, section 3.2; the two class names are AnomalyCLIP's adaptation to anomaly
    detection (its appendix on baselines).

    Parameters
    ----------
    width : int
        Of the text tower.
    length : int
        Vectors of context; the paper's is 16.
    position : {"end", "middle", "front"}
        Where the class name stands: after the context, between its halves, or before it.
    specific : bool
        Whether each of the two states has a context of its own; they share one otherwise. (The
        paper has one for each class. Here the classes are the states, since a context for each
        object could not serve another object.)
    generator : torch.Generator or None
        Draws the first values.
    """

    method: ClassVar[str] = "coop"

    def __init__(
        self,
        width: int,
        length: int = 16,
        position: Position = "end",
        specific: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_whole(length=length)
        if position not in get_args(Position):
            raise OptionError(f"position {position!r}: choose {', '.join(get_args(Position))}")
        self.width, self.length, self.position = width, length, position
        self.specific = specific
        self.context = _drawn((2 if specific else 1, length, width), generator)

    def start_from(self, text: ClipText, words: str) -> None:
        """Begin with the embeddings of words; see :class:`LearnedPrompts`."""
        ids = text.tokenize([words])
        count = int(text.ends(ids)[0]) - 1
        if count != self.length:
            raise OptionError(
                f"{words!r} is {count} tokens and the context has {self.length} vectors: give "
                f"--length {count}, or other words"
            )
        with torch.no_grad():
            self.context.copy_(text.embed_ids(ids)[:, 1 : 1 + count].to(self.context.device))

    def forward(self, text: ClipText, names: Sequence[str]) -> Tensor:
        """Text features of both states for each name; see :class:`LearnedPrompts`."""
        places = " ".join(["X"] * self.length)
        classes = [f"{state} {name.replace('_', ' ')}" for name in names for state in _STATES]
        frozen, ends = self._frozen(text, [f"{places} {each}." for each in classes], self.context)
        contexts = self.context.expand(2, -1, -1).repeat(len(names), 1, 1)
        words = text.ends(text.tokenize(classes)) - 1
        rows = [
            self._arrange(row, context, int(count))
            for row, context, count in zip(frozen, contexts, words, strict=True)
        ]
        features = text.encode_embedded(torch.stack(rows), ends)
        return features.reshape(len(names), 2, -1)

    def _arrange(self, frozen: Tensor, context: Tensor, words: int) -> Tensor:
        """One prompt: start, context and class name in their order, full stop, end."""
        start, rest = frozen[:1], frozen[1 + self.length :]
        name, tail = rest[:words], rest[words:]
        half = {"end": self.length, "middle": self.length // 2, "front": 0}[self.position]
        return torch.cat([start, context[:half], name, context[half:], tail])


class Projections(LearnedModule):
    """One linear layer for each level of the image tower (Chen et al., 2023, section 2.1).

    Parameters
    ----------
    width : int
        Length of a patch token.
    embed_dim : int
        Length of a text feature.
    levels : int
        How many levels.
    generator : torch.Generator or None
        Draws the first values, uniformly within ``1 / sqrt(width)`` as torch's own layers have it.
    """

    method: ClassVar[str] = "april-gan"
    holds: ClassVar[str] = "layers"
    option: ClassVar[str] = "projections"

    def __init__(
        self,
        width: int,
        embed_dim: int,
        levels: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_whole(width=width, embed_dim=embed_dim, levels=levels)
        self.width, self.embed_dim, self.levels = width, embed_dim, levels
        self.layers = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(levels))
        bound = 1 / math.sqrt(width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Unit vectors (B, N, embed_dim) of the patch tokens (B, N, width) of each level."""
        return [
            F.normalize(layer(each), dim=-1)
            for layer, each in zip(self.layers, tokens, strict=True)
        ]


def _drawn(shape: tuple[int, ...], generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(_DEVIATION * torch.randn(shape, generator=generator))


def _check_whole(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise OptionError(f"{name} {value}: give a whole number from 1")
