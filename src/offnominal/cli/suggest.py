"""``offnominal suggest``: which images are worth labelling next."""

import csv
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from offnominal.cli import options
from offnominal.cli.terminal import Unreadable, count, progress_bar, say
from offnominal.errors import OptionError
from offnominal.text import digits, printable

if TYPE_CHECKING:
    from offnominal.suggestions import Suggestion


def suggest(
    model: options.Model,
    images: Annotated[list[str], "IMAGES..."],
    number: Annotated[int, "-n"] = 20,
    output: Annotated[Path | None, "-o"] = None,
    category: str | None = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    endpoint: options.Endpoint = None,
    key_variable: options.KeyVariable = None,
    strict: options.Strict = False,
) -> None:
    """Pick the images that are worth labelling next: near the threshold, unlike each other.

    A terminal gets a table, a pipe the names, one a line: `offnominal predict MODEL - -o look/`
    makes a page of them, on which opinions can be noted.

    Parameters
    ----------
    images : list of str
        Files, folders or globs of images without labels.
    number : int
        How many to pick.
    output : path or None
        CSV to write: image, score, threshold, is_anomalous, p_value, apart.
    category : str or None
        Of the parts, for a model of several: `offnominal info` lists them.
    """
    from offnominal.paths import PassedOver, find_images

    options.check_given(model, images, "suggest", weights, device, engine)
    if number < 1:
        raise OptionError(f"-n {number}: give 1 or more")
    if output is not None:
        if output.suffix.lower() != ".csv":
            raise OptionError(f"-o {output}: a table is written; give a name that ends in .csv")
        options.check_folder(output)
    passed = PassedOver()
    files = find_images(images, passed)
    detector = options.open_model(model, weights, device, endpoint, key_variable, engine)
    if category is not None:
        detector = detector.for_category(category)
    detector.check_category()
    from offnominal.suggestions import suggest as suggested

    with Unreadable(strict) as unreadable:
        with progress_bar(len(files)) as advance:
            found = suggested(detector, files, number, unreadable, advance)
        if output is not None:
            _write(output, found)
        for place, one in enumerate(found, start=1):
            if not sys.stdout.isatty():  # to the byte, as predict reads it
                sys.stdout.buffer.write(os.fsencode(one.source) + b"\n")
                continue
            verdict = "REJECT" if one.is_anomalous else "ok"
            print(f"{place:>4}  {verdict:<7}{digits(one.score):<15}{printable(one.source)}")
        sys.stdout.flush()
        above = sum(one.is_anomalous for one in found)
        say(f"{count(len(found), 'image')} of {len(files)} to label, {above} above the threshold"
            + (f"; also in {output}" if output else ""))  # fmt: skip
        if not found and files:
            say("all that could be read are known to the model already; give images that it has "
                "not learned from")  # fmt: skip
        if passed.total():
            say(str(passed))


def _write(output: Path, found: "list[Suggestion]") -> None:
    from offnominal.atomic import write_atomically

    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", "score", "threshold", "is_anomalous", "p_value", "apart"))
    for one in found:
        known = "" if one.p_value is None else one.p_value
        row = (one.source, one.score, one.threshold, one.is_anomalous, known, one.apart)
        table.writerow(row)
    write_atomically(output, text.getvalue().encode("utf-8", "surrogateescape"))
