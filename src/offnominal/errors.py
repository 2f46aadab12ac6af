"""Every error that the library raises on purpose.

All of them are :class:`OffnominalError`, so one ``except`` catches what a user can cause. A
message names the file or the option, says what is wrong with it, and says what to do.
"""

__all__ = [
    "BackboneError",
    "DatasetError",
    "EngineWarning",
    "ImageError",
    "ImageWarning",
    "MissingExtraError",
    "ModelFileError",
    "NotFittedError",
    "OffnominalError",
    "OptionError",
    "ThresholdWarning",
    "WeightsError",
]


class OffnominalError(Exception):
    """Base of every error that a user can cause and can mend."""


class ImageError(OffnominalError):
    """An image cannot be used: unreadable, truncated, animated, too small, too large.

    Parameters
    ----------
    source : str
        The file, or a description of the array, that is at fault.
    reason : str
        What is wrong and what to do, without the source's name.
    """

    def __init__(self, source: object, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = str(source)
        self.reason = reason


class ImageWarning(UserWarning):
    """Images can be read, and are hardly what was meant: too dark, or of another depth."""


class EngineWarning(UserWarning):
    """An engine is left out, or a graph in the cache was damaged; what runs instead is told."""


class ThresholdWarning(UserWarning):
    """A threshold was estimated beyond what the good images promise, and would pass defects."""


class OptionError(OffnominalError, ValueError):
    """An option has a value outside its range, or two options contradict each other."""


class MissingExtraError(OffnominalError, ImportError):
    """A package is not installed that what was asked for needs; the message says how to get it."""


class BackboneError(OffnominalError):
    """A backbone is unknown, or cannot do what is asked of it."""


class WeightsError(OffnominalError):
    """Weights cannot be had, cannot be read, or do not fit the network."""


class ModelFileError(OffnominalError):
    """A saved detector cannot be opened: truncated, foreign, newer, or for other weights."""


class DatasetError(OffnominalError):
    """A data set's folder does not hold what its layout promises."""


class NotFittedError(OffnominalError, RuntimeError):
    """A detector was asked to predict before it was fitted."""
