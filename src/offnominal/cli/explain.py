"""``offnominal explain``: what the worst patches of an image were compared with."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from offnominal.cli import options
from offnominal.cli.terminal import say
from offnominal.errors import OptionError
from offnominal.text import digits, json_line, printable

if TYPE_CHECKING:
    from offnominal.explain.match import Explanation


def explain(
    model: options.Model,
    image: Annotated[Path, "IMAGE"],
    output: Annotated[Path | None, "-o"] = None,
    worst: int = 5,
    references: Annotated[list[str] | None, "--references FOLDER"] = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
) -> None:
    """Show an image's worst patches beside their nearest nominal ones, as one picture.

    Parameters
    ----------
    image : path
        The image to explain.
    output : path or None
        Picture to write; else IMAGE.explained.png here.
    worst : int
        How many patches, from distinct regions.
    references : list of str or None
        Where to look for references, and known defects, that are no longer where they were;
        repeatable.
    """
    from offnominal.paths import is_own

    options.check_given(model, [str(image)], "explain", weights, device, engine)
    target = output or Path(f"{image.stem}.explained.png")
    if target.suffix.lower() != ".png":
        raise OptionError(f"-o {target}: a PNG is written; give a name that ends in .png")
    options.check_folder(target)
    options.check_picture(target)
    if is_own(image):
        raise OptionError(f"{image}: drawn by Offnominal, not a picture of a part")
    if not image.is_file():
        what = "is a folder; name one picture in it" if image.is_dir() else "does not exist"
        raise OptionError(f"{image}: {what}{'' if image.is_dir() else '; check the path'}")
    if worst < 1:
        raise OptionError(f"--worst {worst}: give 1 or more")
    from offnominal.explain.explanation import explain as explained
    from offnominal.explain.picture import draw
    from offnominal.pictures import save_picture

    detector = options.open_model(model, weights, device, engine=engine)
    explanation = explained(detector, image, worst, references or ())
    line = json_line(explanation.to_dict())
    save_picture(target, draw(explanation))
    if sys.stdout.isatty():
        _print(explanation)
    else:
        print(line, flush=True)
    say(f"picture: {target}")


def _print(explanation: "Explanation") -> None:
    found = explanation.prediction
    score, limit = digits(found.score), found.threshold
    told = f", threshold {digits(limit)}" if limit is not None else ""
    print(f"{printable(found.source)}: score {score}{told}")
    for match in explanation.matches:
        origin, (left, top, _, _) = match.origin, match.box
        turned = f", turned by {origin.angle:g} degrees" if origin.angle else ""
        where = f"nearest in {printable(origin.file)} at {origin.box[0]},{origin.box[1]}{turned}"
        print(
            f"{match.number:>3}  distance {match.distance:<11.4g}at {f'{left},{top}':<9}  {where}"
        )
        if known := match.known:
            place = f"{printable(known.file)} at {known.box[0]},{known.box[1]}"
            gone = "" if known.patch is not None else " (no longer there)"
            print(f"     nearest known defect: {printable(known.kind)} in {place}{gone}, "
                  f"cosine distance {known.distance:.4g}")  # fmt: skip
