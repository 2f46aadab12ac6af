"""What the loop of every training sees of a detector: what is trained, and nothing that is frozen.

Where choosing is asked for, it keeps the best of the states that it passes through.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn, tensor

__all__ = ["LOOKS", "Learner", "auroc"]

_FROZEN = "network."
_BEST = "best."
LOOKS = 10  # at how many states of a training is looked, where choosing is asked for


class Learns(Protocol):
    """A detector that has a loss."""

    def training_loss(self, batch: Any) -> dict[str, Tensor]: ...
    def move(self, device: torch.device) -> None: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool) -> Any: ...


class Learner:
    """Adapter between a detector and the loop.

    Parameters
    ----------
    detector : a detector with a loss
    judge : callable or None
        How good the detector is as it stands; None: its last state is taken.
    compiled : bool
        Whether the loss is compiled.
    """

    def __init__(
        self,
        detector: Learns,
        judge: Callable[[], float] | None = None,
        compiled: bool = False,
    ) -> None:
        self.module, self._judge = detector, judge
        loss = detector.training_loss
        self._loss = torch.compile(loss) if compiled else loss
        self._best: dict[str, Tensor] = {}
        if judge:
            self._keep(-1.0)

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Parts of the loss of a batch."""
        return self._loss(batch)

    def move(self, device: torch.device) -> None:
        """Bring everything to another device."""
        self.module.move(device)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained."""
        for name, each in self.module.named_parameters():
            if not name.startswith(_FROZEN):
                yield name, each

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        return (each for _, each in self.named_parameters())

    def state_dict(self) -> dict[str, Any]:
        """What is trained, with its running statistics, and the best of it so far."""
        return self._own() | self._best

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool) -> Any:
        """Take over what :meth:`state_dict` gave."""
        own = {k: t for k, t in state_dict.items() if not k.startswith(_BEST)}
        if self._best:
            self._best = {k: t for k, t in state_dict.items() if k.startswith(_BEST)}
        return self.module.load_state_dict(own, strict)

    def look(self, step: int, steps: int) -> None:
        """After a step, counted from 1: ten times in a training, keep the state if it is best."""
        if self._judge and step * LOOKS // steps > (step - 1) * LOOKS // steps:
            good = self._judge()
            if good > float(self._best[f"{_BEST}score"]):
                self._keep(good)

    def take_best(self) -> None:
        """Go back to the best state, where choosing was asked for."""
        start = len(_BEST)
        found = {k[start:]: t for k, t in self._best.items() if k != f"{_BEST}score"}
        if found:
            self.module.load_state_dict(found, strict=False)

    def _own(self) -> dict[str, Any]:
        state = self.module.state_dict()
        return {name: each for name, each in state.items() if not name.startswith(_FROZEN)}

    def _keep(self, score: float) -> None:
        copies = {_BEST + name: each.detach().clone() for name, each in self._own().items()}
        self._best = copies | {f"{_BEST}score": tensor(score)}


def auroc(good: np.ndarray, bad: np.ndarray) -> float:
    """The chance that a bad one scores higher than a good one, ties counted half."""
    higher = (bad[:, None] > good).mean()
    return float(higher + 0.5 * (bad[:, None] == good).mean())
