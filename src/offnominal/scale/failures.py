"""What goes wrong in a worker, as its driver hears of it."""

import traceback

from offnominal.errors import OffnominalError, OptionError

__all__ = ["Failed", "StartDeaths"]

_STARTS = 10  # deaths in a row of workers that were not ready yet


class Failed:
    """An error of the function, as it travels from a worker: not every error can be pickled."""

    def __init__(self, error: Exception) -> None:
        self.expected = isinstance(error, OffnominalError | OSError)
        if isinstance(error, OffnominalError):
            self.told = str(error)
        elif isinstance(error, OSError):  # a disk that is full or failing, a folder taken away
            where = f"{error.filename}: " if error.filename else ""
            self.told = f"{where}{error.strerror or error}; mend that and run the command again"
        else:
            self.told = "".join(traceback.format_exception(error))

    def again(self) -> Exception:
        """The error for the driver to raise."""
        return OptionError(self.told) if self.expected else RuntimeError(self.told)


class StartDeaths:
    """Counts workers that die before they are ready: no fault of a shard, and not for ever."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def ready(self) -> None:
        """A worker is ready."""
        self._in_a_row = 0

    def died(self, reason: str) -> None:
        """A worker died that was not."""
        self._in_a_row += 1
        if self._in_a_row == _STARTS:
            raise OptionError(
                f"workers die while they start, {_STARTS} in a row ({reason}): each loads the "
                "model, so see whether the memory is enough for all of them, and give fewer"
            )
