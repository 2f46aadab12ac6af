"""From prompts to the two vectors that images are compared with, and the comparison."""

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.clip_text import ClipText
from offnominal.language.prompts import PromptEnsemble

__all__ = ["abnormality", "state_features"]


def state_features(text: ClipText, ensemble: PromptEnsemble, name: str) -> Tensor:
    """Text features of the normal and the abnormal state of an object.

    Parameters
    ----------
    text : ClipText
    ensemble : PromptEnsemble
    name : str
        What the object is called.

    Returns
    -------
    Tensor of shape (2, embed_dim), float32
        Normal and abnormal, each the mean over its prompts, brought to length 1.
    """
    means = []
    for prompts in ensemble.prompts(name):
        embedded = text.encode(prompts)
        if ensemble.normalise_each:
            embedded = F.normalize(embedded, dim=1)
        means.append(embedded.mean(0))
    return F.normalize(torch.stack(means), dim=1)


def abnormality(embeddings: Tensor, states: Tensor, temperature: float) -> Tensor:
    """How much more like the abnormal text than the normal one embeddings are.

    Parameters
    ----------
    embeddings : Tensor of shape (..., E)
        Of any length.
    states : Tensor of shape (2, E)
        Normal and abnormal, of length 1.
    temperature : float
        What cosines are divided by.

    Returns
    -------
    Tensor of shape (...)
        Softmax over the two states, the abnormal entry; on (0, 1).
    """
    cosines = F.normalize(embeddings, dim=-1) @ states.T
    return (cosines / temperature).softmax(-1)[..., 1]
