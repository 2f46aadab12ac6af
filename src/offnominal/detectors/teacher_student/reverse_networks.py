"""The two networks that reverse distillation trains: a bottleneck, and a decoder behind it.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022 (arXiv
2201.10703), section 3.2 and 3.3; layers as in the authors' released code. Both are made of
torchvision's residual blocks, and their widths follow from the teacher's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

__all__ = ["Decoder", "OneClassBottleneck", "Plan", "plan_of"]


class Plan(NamedTuple):
    """What kind of residual network stands opposite a teacher.

    Attributes
    ----------
    channels : (int, int, int)
        Of the teacher's levels, from the finest to the coarsest.
    bottleneck : bool
        Whether blocks have three convolutions, 1 x 1, 3 x 3 and 1 x 1, instead of two.
    blocks : (int, int, int)
        How many blocks the decoder's stages have, from the coarsest to the finest.
    embedding_blocks : int
        How many make the embedding.
    wide : bool
        Whether the 3 x 3 convolutions are twice as wide (WideResNet).
    """

    channels: tuple[int, int, int]
    bottleneck: bool
    blocks: tuple[int, int, int]
    embedding_blocks: int
    wide: bool

    def block(
        self, incoming: int, outgoing: int, stride: int = 1, skip: nn.Module | None = None
    ) -> nn.Module:
        """One residual block, by its channels at both ends."""
        if not self.bottleneck:
            return BasicBlock(incoming, outgoing, stride, skip)
        planes = outgoing // Bottleneck.expansion
        return Bottleneck(incoming, planes, stride, skip, base_width=64 * (1 + self.wide))


def plan_of(name: str, channels: Sequence[int]) -> Plan:
    """The networks opposite a teacher: the released ones for ResNet-18, 34, 50 and WideResNet-50-2.

    For any other, a ResNet-18's where its finest level has fewer than 256 channels, and a
    ResNet-50's where it has more.

    Parameters
    ----------
    name : str
        The teacher's.
    channels : sequence of three ints
        Of its levels of strides 4, 8 and 16.
    """
    fine, middle, coarse = channels
    bottleneck, wide = fine >= 256, name.startswith("wide_resnet")
    deep = bottleneck or name.split(".")[0] == "resnet34"
    return Plan(
        (fine, middle, coarse), bottleneck, (3, 4, 6) if deep else (2, 2, 2), 3 if deep else 2, wide
    )


class OneClassBottleneck(nn.Module):
    """Multi-scale fusion and one-class embedding (section 3.3).

    The finer levels are brought to the coarsest one's grid by convolutions of stride 2, all three
    are joined, and a stage of residual blocks makes the embedding of them, at half that grid and
    twice its channels. It is what anomalies cannot get through.

    The released code has one more convolution with its norm, which nothing goes through; it is left
    out here.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        fine, middle, coarse = plan.channels
        self.conv1, self.bn1 = _halved(fine, middle), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = _halved(middle, coarse), nn.BatchNorm2d(coarse)
        self.conv3, self.bn3 = _halved(middle, coarse), nn.BatchNorm2d(coarse)
        joined, out = 3 * coarse, 2 * coarse
        skip = nn.Sequential(nn.Conv2d(joined, out, 1, 2, bias=False), nn.BatchNorm2d(out))
        self.bn_layer = nn.Sequential(
            plan.block(joined, out, 2, skip),
            *(plan.block(out, out) for _ in range(plan.embedding_blocks - 1)),
        )
        _initialise(self)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Embedding (B, 2 C3, h / 2, w / 2) of levels (B, C1, 4 h, 4 w), ..., (B, C3, h, w)."""
        fine, middle, coarse = levels
        fine = F.relu(self.bn1(self.conv1(fine)))
        fine = F.relu(self.bn2(self.conv2(fine)))
        middle = F.relu(self.bn3(self.conv3(middle)))
        found: Tensor = self.bn_layer(torch.cat([fine, middle, coarse], dim=1))
        return found


class Decoder(nn.Module):
    """The student: a residual network run backwards, from the embedding to the finest level.

    The first block of each stage doubles the grid, by transposed convolutions of 2 x 2 where the
    teacher's has convolutions of stride 2 (section 3.2).
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        fine, middle, coarse = plan.channels
        widths = (2 * coarse, coarse, middle, fine)
        for number in range(3):
            incoming, outgoing = widths[number], widths[number + 1]
            stage = [plan.block(outgoing, outgoing) for _ in range(plan.blocks[number] - 1)]
            stage.insert(0, _doubling(plan, incoming, outgoing))
            self.add_module(f"layer{number + 1}", nn.Sequential(*stage))
        _initialise(self)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """What the teacher's levels should be, from the finest to the coarsest."""
        levels = []
        for stage in self.children():
            embedding = stage(embedding)
            levels.append(embedding)
        return tuple(levels[::-1])


def _halved(incoming: int, outgoing: int) -> nn.Conv2d:
    return nn.Conv2d(incoming, outgoing, 3, 2, padding=1, bias=False)


def _doubling(plan: Plan, incoming: int, outgoing: int) -> nn.Module:
    """A block whose convolution of stride 2 is a transposed one."""
    up = nn.ConvTranspose2d(incoming, outgoing, 2, 2, bias=False)
    block = plan.block(incoming, outgoing, 1, nn.Sequential(up, nn.BatchNorm2d(outgoing)))
    name = "conv2" if plan.bottleneck else "conv1"
    strided = block.get_submodule(name)
    assert isinstance(strided, nn.Conv2d)
    doubled = nn.ConvTranspose2d(strided.in_channels, strided.out_channels, 2, 2, bias=False)
    block.add_module(name, doubled)
    return block


def _initialise(network: nn.Module) -> None:
    """As ResNets are; transposed convolutions keep torch's default, as in the released code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
