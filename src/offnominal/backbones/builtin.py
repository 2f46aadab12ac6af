"""Patch features without weights: Gabor energies on opponent colours.

Nothing is learned and nothing is fetched, so this backbone works on any machine at once. It is
weaker than learned features; ``docs/builtin.md`` has the measured gap.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Backbone

__all__ = ["Builtin"]

_LEVELS = 4
_STRIDE = 2 ** (_LEVELS - 1)
_RADIUS = 4  # a 9 x 9 filter, two deviations of its envelope
_WAVELENGTH = 4.0
_ENVELOPE = 2.0
_CHROMA_ORIENTATIONS = 4
_MID_GREY = 0.5
_DARK = 0.01  # keeps a black image's noise from being amplified without bound
_LOG_FLOOR = 1e-3
_CONTRAST_FLOOR = 0.15
_STRENGTH_FLOOR = 0.02
_EXTRA_WEIGHT = 0.3  # of contrast strength and colour beside the normalised parts


class Builtin(Backbone):
    """Gabor energies on opponent colours: features without weights.

    Pixels are divided by their image's mean, so exposure does not matter, and split into
    luminance and two opponent colours. At each of four levels of a Gaussian pyramid the magnitudes
    of complex Gabor filters (quadrature pairs, as in Bovik, Clark and Geisler, 1990) are blurred
    and averaged over the patches of the grid.

    Parameters
    ----------
    aligned : bool
        False (``builtin``): logarithms of the energies and the mean colour, 59 dimensions, meant to
        be standardised over the good images. For few images, and for textures.
        True (``builtin-aligned``): energies divided by the local contrast, with more orientations,
        bright and dark spots and a wider neighbourhood, 158 dimensions, used as they are. For 50 or
        more good images in which every part lies in the same place.
    """

    family = "builtin"
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    resolution = 256
    resize = "short"
    stride = _STRIDE
    multiple = _STRIDE

    luminance_filters: Tensor
    chroma_filters: Tensor
    spot_centre: Tensor
    spot_surround: Tensor
    smoothing: Tensor

    def __init__(self, aligned: bool = False) -> None:
        super().__init__()
        self.aligned = aligned
        self.name = "builtin-aligned" if aligned else "builtin"
        self.digest = f"{self.name}-1"  # goes up whenever the same pixels give other features
        self.normalize = "none" if aligned else "standardize"
        self.layers = tuple(range(_LEVELS))
        orientations = 8 if aligned else 6
        luminance = orientations + 2 * aligned
        per_level = luminance + 2 * _CHROMA_ORIENTATIONS
        self.dim = 2 * (_LEVELS * per_level + 7) if aligned else _LEVELS * per_level + 3

        # Computed in float64, rounded to float32, and in no state dict.
        filters = {
            "luminance_filters": _gabor(orientations),
            "chroma_filters": _gabor(_CHROMA_ORIENTATIONS),
            "spot_centre": _gaussian(0.7, 6),
            "spot_surround": _gaussian(2.0, 6),
            "smoothing": _gaussian(1.0, 3),
        }
        for level in range(_LEVELS):
            filters[f"pooling{level}"] = _pooling(_STRIDE >> level)
        for name, values in filters.items():
            self.register_buffer(name, values.to(torch.float32), persistent=False)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features (B, dim, h / 8, w / 8) of RGB on [0, 1]; see :class:`Backbone`."""
        self.check_size(pixels)
        exposure = pixels.mean((1, 2, 3), keepdim=True)
        colour = _opponent(pixels * (_MID_GREY / (exposure + _DARK)))
        luminance, chroma, colours = [], [], []
        for level in range(_LEVELS):
            if level:
                colour = F.avg_pool2d(_separable(colour, self.smoothing, 1), 2)
            bright = _magnitudes(colour[:, :1], self.luminance_filters)
            if self.aligned:
                centre = _separable(colour[:, :1], self.spot_centre, 1)
                spots = centre - _separable(colour[:, :1], self.spot_surround, 1)
                bright = torch.cat([bright, spots.relu(), (-spots).relu()], dim=1)
            # The two opponent colours go through the same filters, as if they were two images.
            pair = colour[:, 1:].flatten(0, 1)[:, None]
            tinted = _magnitudes(pair, self.chroma_filters)
            pairs = 2 * int(tinted.shape[1])  # a number, where a graph is traced, too
            tinted = tinted.reshape(colour.shape[0], pairs, *colour.shape[-2:])
            luminance.append(self._pooled(bright, level))
            chroma.append(self._pooled(tinted, level))
            colours.append(F.avg_pool2d(colour, _STRIDE >> level))
        if self.aligned:
            return _contrast_features(luminance, chroma, colours)
        energies = torch.cat(
            [part for pair in zip(luminance, chroma, strict=True) for part in pair], dim=1
        )
        return torch.cat([(energies + _LOG_FLOOR).log(), colours[-1]], dim=1)

    def _pooled(self, maps: Tensor, level: int) -> Tensor:
        return _separable(maps, self.get_buffer(f"pooling{level}"), _STRIDE >> level)


def _contrast_features(
    luminance: list[Tensor], chroma: list[Tensor], colours: list[Tensor]
) -> Tensor:
    """Energies relative to the local contrast, its strength, and colour; and their 3 x 3 means."""
    bright = torch.cat(luminance, dim=1).sqrt()
    tinted = torch.cat(chroma, dim=1).sqrt()
    strength = _norm(bright)
    features = torch.cat(
        [
            bright / (strength + _CONTRAST_FLOOR),
            _EXTRA_WEIGHT * (strength + _STRENGTH_FLOOR).log(),
            tinted / (_norm(tinted) + strength + _CONTRAST_FLOOR),
            *(_EXTRA_WEIGHT * colour for colour in colours[-2:]),
        ],
        dim=1,
    )
    around = F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([features, around], dim=1)


def _opponent(pixels: Tensor) -> Tensor:
    """Luminance, red against green, and yellow against blue: (B, 3, h, w)."""
    red, green, blue = pixels.unbind(1)
    # Differences first, so that grey has exactly no colour.
    against_green, against_blue = red - green, (red - blue) + (green - blue)
    luminance = (red + green + blue) / 3
    return torch.stack([luminance, against_green / math.sqrt(2), against_blue / math.sqrt(6)], 1)


def _magnitudes(plane: Tensor, filters: Tensor) -> Tensor:
    """Magnitudes (B, n, h, w) of one plane's responses to n quadrature pairs."""
    padded = F.pad(plane, (_RADIUS,) * 4, mode="replicate")
    even, odd = F.conv2d(padded, filters).chunk(2, dim=1)
    return (even * even + odd * odd).sqrt()


def _separable(maps: Tensor, kernel: Tensor, step: int) -> Tensor:
    """Each channel filtered by ``kernel`` along both axes and sampled every ``step`` pixels."""
    channels, reach = int(maps.shape[1]), (kernel.shape[0] - step) // 2
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    row = kernel.expand(channels, 1, 1, -1)
    column = row.transpose(2, 3)
    across = F.conv2d(padded, row, stride=(1, step), groups=channels)
    return F.conv2d(across, column, stride=(step, 1), groups=channels)


def _norm(maps: Tensor) -> Tensor:
    return maps.square().sum(1, keepdim=True).sqrt()


def _gaussian(sigma: float, radius: int) -> Tensor:
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-place.square() / (2 * sigma**2))
    return weights / weights.sum()


def _pooling(size: int) -> Tensor:
    """A blur of one pixel followed by a mean over ``size`` pixels, as one kernel."""
    kernel = _gaussian(1.0, 3)
    wide = torch.zeros(size + 6, dtype=torch.float64)
    for shift in range(size):
        wide[shift : shift + 7] += kernel / size
    return wide


def _gabor(orientations: int) -> Tensor:
    """Quadrature pairs of shape (2 n, 1, 9, 9): all cosine parts, then all sine parts.

    The cosine part has its mean removed, so that brightness alone gives no response; every filter
    is divided by the sum of its absolute values.
    """
    place = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(place, place, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * _ENVELOPE**2))
    even, odd = [], []
    for index in range(orientations):
        angle = math.pi * index / orientations
        phase = 2 * math.pi / _WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        cosine = envelope * phase.cos()
        even.append(cosine - cosine.mean())
        odd.append(envelope * phase.sin())
    return torch.stack([f / f.abs().sum() for f in even + odd])[:, None]
