"""What a driver must know of a model, found out in a process that ends again.

So the driver loads neither torch nor a model: it stays as small as its list of parts.
"""

import multiprocessing
import signal
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from offnominal.errors import OptionError
from offnominal.scale.failures import Failed
from offnominal.scale.parts import is_url
from offnominal.scale.processes import in_words, undisturbed
from offnominal.scale.scoring import Model, fetch

__all__ = ["Facts", "facts_of"]


@dataclass(frozen=True)
class Facts:
    """What results depend on or say, beside the images.

    Attributes
    ----------
    method, limit : str
        The method, and the threshold in words.
    decides, masks : bool
        Whether there is a threshold for images, and one for pixels.
    threshold : float or None
        One that was given by hand, the model's own to the bit where it prints the same.
    untrained : str
        Why the weights say nothing, if so.
    engine : str
        What ran the network of the first image, for all workers to do likewise; empty where the
        method has none, or no image could be read.
    """

    method: str
    limit: str
    decides: bool
    masks: bool
    threshold: float | None
    untrained: str
    engine: str


def facts_of(model: Model, threshold: float | None, images: list[str]) -> Facts:
    """Open a model, score one of some images, and say what there is to know.

    Raises
    ------
    OptionError
        Of whatever stands in the way, in the words of who found it.
    """
    while True:
        opened, found, reason = _asked(model, threshold, images)
        if isinstance(found, Failed):
            raise found.again()
        if found is not None:
            return found
        if not opened:
            raise OptionError(
                f"{model.path}: the process that opened it is gone ({reason}): see whether the "
                "memory is enough for the model, and run the same command again"
            )
        if not images:
            raise OptionError(f"{model.path}: the process that tried it is gone ({reason})")
        images = images[1:]  # one of them ends whoever reads it: its row will say so


def _asked(
    model: Model, threshold: float | None, images: list[str]
) -> tuple[bool, Facts | Failed | None, str]:
    """Whether a process opened the model, what it found, and if nothing how it ended."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(
        target=_tell, args=(theirs, model, threshold, images), name="offnominal-facts"
    )
    with undisturbed():
        process.start()
    theirs.close()
    opened, found = False, None
    try:
        while found is None:
            told = pipe.recv()
            opened, found = True, told
    except (EOFError, OSError):
        process.join()
    finally:
        pipe.close()
        if found is None:  # a Ctrl-C
            process.kill()
        process.join()
    return opened, found, in_words(process.exitcode)


def _tell(pipe: Connection, model: Model, threshold: float | None, images: list[str]) -> None:
    """The process's whole life; where its driver died, nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the driver's to answer
    with suppress(OSError):
        try:
            pipe.send(_found(pipe, model, threshold, images))
        except Exception as error:
            pipe.send(Failed(error))


def _found(pipe: Connection, model: Model, threshold: float | None, images: list[str]) -> Facts:
    from offnominal.cli.options import as_printed, threshold_in_words
    from offnominal.detectors.networks import untrained
    from offnominal.text import digits

    detector = model.open()
    limit = threshold_in_words(detector)
    if threshold is not None:
        threshold = as_printed(threshold, detector)
        limit = f"{digits(threshold)}: given by hand"
    pipe.send(None)  # whatever ends this process now is an image
    with TemporaryDirectory() as folder:
        sources = (_here(name, folder) for name in images)
        for _ in islice(detector.stream(sources, lambda error: None), 1):
            pass
    masks = all(one.pixel_threshold is not None for one in detector.each_category())
    return Facts(
        detector.method, limit, detector.decides, masks, threshold,
        untrained(detector) or "", getattr(detector, "engine_in_force", ""),
    )  # fmt: skip


def _here(name: str, folder: str) -> str:
    """An image that can be opened."""
    if not is_url(name):
        return name
    path = str(Path(folder, f"first{Path(name).suffix}"))
    fetch(name, path)
    return path
