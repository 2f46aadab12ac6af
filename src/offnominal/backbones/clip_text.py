"""CLIP's text tower: prompts in, embeddings out; learnable prompts as well."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from offnominal.backbones.clip_blocks import Activation, run_block
from offnominal.errors import OptionError

__all__ = ["ClipText", "tokenize"]

_CONTEXT = 77


def tokenize(texts: Sequence[str], context: int = _CONTEXT) -> Tensor:
    """Token numbers (n, context), int64, by the vocabulary that comes with open_clip.

    Raises
    ------
    OptionError
        If a prompt is longer than the context.
    """
    tokenizer = _tokenizer()
    for text in texts:
        count = len(tokenizer.encode(text))
        if count > context - 2:  # the start and the end have a token each
            raise OptionError(
                f"the prompt {text[:60]!r} has {count} tokens and CLIP reads {context - 2}: give a "
                "shorter class name"
            )
    ids: Tensor = tokenizer(list(texts), context_length=context)
    return ids


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


class ClipText(nn.Module):
    """The frozen text tower of a CLIP model.

    Parameters
    ----------
    model : open_clip.CLIP
        Its image tower is not used; its weights are loaded afterwards.
    activation : {"quickgelu", "gelu"}

    Attributes
    ----------
    context, width, embed_dim : int
        Tokens of a prompt, 77; length of a token's embedding; length of a prompt's, as of an
        image's.
    """

    def __init__(self, model: Any, activation: Activation) -> None:
        super().__init__()
        # open_clip's names, so that its state dicts fit.
        self.transformer = model.transformer
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.activation: Activation = activation
        self.context, self.width = self.positional_embedding.shape
        self.embed_dim = int(self.text_projection.shape[1])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers (n, context), int64; see :func:`tokenize`."""
        return tokenize(texts, self.context)

    @staticmethod
    def ends(ids: Tensor) -> Tensor:
        """Positions (n,) of the end of each text; its token has the largest number."""
        return ids.argmax(dim=1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """Embeddings (n, embed_dim) of prompts, float32, not normalised."""
        ids = self.tokenize(texts).to(self.positional_embedding.device)
        # What follows a text's end does not reach it, so the longest text sets the length.
        ids = ids[:, : int(self.ends(ids).max()) + 1]
        parts = [
            self.encode_embedded(self.embed_ids(p), self.ends(p)) for p in torch.split(ids, batch)
        ]
        return torch.cat(parts)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Token embeddings (n, L, width) of token numbers (n, L), without positions."""
        embedded: Tensor = self.token_embedding(ids)
        return embedded

    def encode_embedded(
        self, embeddings: Tensor, ends: Tensor, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        """Embeddings (n, embed_dim) of prompts whose tokens are vectors, some perhaps learned.

        Float32, not normalised. Gradients flow to ``embeddings`` and ``deep``.

        Parameters
        ----------
        embeddings : Tensor of shape (n, L, width), float32
            Without positions, which are added here. L may be less than ``context``: attention is
            causal, so nothing behind the last end matters.
        ends : Tensor of shape (n,), int64
            Where each text ends; the output is read there.
        deep : sequence of Tensor of shape (m, width) or (n, m, width)
            Written over positions 1 to m where the second block, the third and so on begin.
        """
        x = embeddings + self.positional_embedding[: embeddings.shape[1]]
        for index, block in enumerate(self.transformer.resblocks):
            if 1 <= index <= len(deep):
                learned = deep[index - 1].expand(len(x), -1, -1).to(x.dtype)
                x = torch.cat([x[:, :1], learned, x[:, 1 + learned.shape[1] :]], dim=1)
            x = run_block(block, x, self.activation, causal=True)
        found: Tensor = self.ln_final(x)[torch.arange(len(x), device=x.device), ends]
        projected: Tensor = found @ self.text_projection
        return projected
