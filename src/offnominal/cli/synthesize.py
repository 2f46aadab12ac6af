"""``offnominal synthesize``: good images in, defective ones with exact masks out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.stop import telling
from offnominal.cli.terminal import Unreadable, progress_bar, say, waiting
from offnominal.cli.terminal import count as counted
from offnominal.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from offnominal.synthesis.diffusion import Painter
    from offnominal.synthesis.folder import Made, SyntheticFolder
    from offnominal.synthesis.objects import Objects
    from offnominal.synthesis.seeds import Seed

_ON_SHEET = 12
FROM_DEFECTS = ("seeds", "diffusion")  # kinds that take some real defects


def synthesize(
    good: Annotated[list[str], "GOOD_DIR..."],
    output: Annotated[Path, "-o"],
    kind: Literal["perlin", "cutpaste", "scar", "nsa", "seeds", "diffusion"],
    count: int = 50,
    seed: int = 0,
    name: str = "synthetic",
    train_share: float = 0.5,
    textures: Path | None = None,
    defects: list[str] | None = None,
    masks: Path | None = None,
    object: Literal["auto", "on", "off"] = "auto",
    backbone: str | None = None,
    weights: str | None = None,
    model: Path | None = None,
    steps: int = 600,
    strict: options.Strict = False,
) -> None:
    """Make defective images with exact masks out of good ones.

    They are written in the layout of MVTec AD, with copies of the good images, as `evaluate` and
    `datasets check` read it. The same command goes on where it stopped, and with a larger --count
    makes more; with another --kind it adds those.

    Parameters
    ----------
    good : list of str
        Folders, files or globs of good images.
    output : path
        Folder to write to.
    kind : str
        From nothing: perlin, cutpaste, scar or nsa. From a few real defects: seeds or diffusion.
    count : int
        Defective images.
    seed : int
        The same seed gives the same images.
    name : str
        Of the category, a folder in the output.
    train_share : float
        Share of the good images to learn from; defects are made of the others.
    textures : path or None
        For perlin: a folder of textures; else built-in ones.
    defects : list of str or None
        For seeds and diffusion: folders of real defective images; repeatable.
    masks : path or None
        Folder of their masks, named as the images.
    object : {"auto", "on", "off"}
        Make defects on the object alone, found as anomalydino finds it. auto: where it stands clear
        of a background.
    backbone : str or None
        Network that finds the object; else the one that was installed with it.
    weights : str or None
        Local weights of the backbone.
    model : path or None
        For diffusion: file of what is learned from the defects, used again if it is there; else
        diffusion.safetensors in the output.
    steps : int
        For diffusion: training steps.
    """
    _check(output, kind, count, seed, name, train_share, textures, defects, masks, model)
    with telling(lambda: f"the same command goes on in {output}"), Unreadable(strict) as unreadable:
        from offnominal.paths import PassedOver, find_images

        passed = PassedOver()
        files = find_images(good, passed)
        if any(output.resolve() in file.resolve().parents for file in files):
            raise OptionError(f"-o {output}: holds some of the good images; name another folder")
        from offnominal.synthesis.folder import SyntheticFolder
        from offnominal.synthesis.kinds import Draw, drawer
        from offnominal.synthesis.objects import Objects
        from offnominal.synthesis.seeds import digest_of
        from offnominal.synthesis.textures import Textures

        seeds = _seeds(good, defects, masks, unreadable) if defects else []
        with waiting("looking for the object"):
            objects = Objects(object, backbone, weights)
        with progress_bar(len(files)) as advance:
            folder = SyntheticFolder(
                output, name, files, train_share, seed, objects, unreadable, advance
            )
        settings = {"object": object, "network": objects.network}
        settings["textures"] = str(textures) if textures else ""
        if kind == "seeds":
            settings["defects"] = digest_of(seeds)
        draw: Draw
        if kind == "diffusion":
            path = model or output / "diffusion.safetensors"
            draw, settings["model"] = _painter(path, seeds, steps, seed)
        else:
            draw = drawer(kind, Textures(textures), folder.other, seeds)
        with progress_bar(count) as advance:
            made = folder.make(kind, draw, count, settings, advance)
        _tell(folder, output, kind, made, objects)
        if passed.total():
            say(f"  {passed}")


def _check(
    output: Path,
    kind: str,
    count: int,
    seed: int,
    name: str,
    train_share: float,
    textures: Path | None,
    defects: list[str] | None,
    masks: Path | None,
    model: Path | None,
) -> None:
    if count < 1 or seed < 0:
        wrong = f"--count {count}: give 1" if count < 1 else f"--seed {seed}: give 0"
        raise OptionError(f"{wrong} or more")
    if not 0 <= train_share < 1:
        raise OptionError(f"--train-share {train_share}: give a share from 0 to below 1")
    if not name or Path(name).name != name or name.startswith("."):
        raise OptionError(f"--name {name}: give the plain name of a folder, as tile")
    if textures is not None and kind != "perlin":
        raise OptionError(f"--textures: --kind {kind} takes none; leave it out, or use perlin")
    if kind == "seeds" and not defects:
        raise OptionError("--kind seeds: give --defects and --masks, a few real ones")
    if model is not None and kind != "diffusion":
        raise OptionError(f"--model: --kind {kind} learns nothing; leave it out, or use diffusion")
    if kind not in FROM_DEFECTS and (defects or masks):
        raise OptionError(
            f"--defects and --masks: --kind {kind} takes none; leave them out, or use "
            f"{' or '.join(FROM_DEFECTS)}"
        )
    if masks is not None and not defects:
        raise OptionError(f"--masks {masks}: are those of --defects; give both, or neither")
    if output.exists() and not output.is_dir():
        raise OptionError(f"-o {output}: is a file; name a folder")


def _seeds(
    good: list[str], defects: list[str], masks: Path | None, unreadable: Unreadable
) -> "list[Seed]":
    """The real defects, cut out by their masks."""
    from offnominal.datasets import open_dataset
    from offnominal.datasets.masks import sample_mask
    from offnominal.errors import ImageError
    from offnominal.images import read_image
    from offnominal.synthesis.seeds import cut_seeds

    dataset = open_dataset(good=good, defects=defects, masks=masks)
    samples = [sample for sample in dataset.samples if sample.label]
    found, without = [], []
    for sample in samples:
        try:
            image = read_image(sample.image)
        except ImageError as error:
            unreadable(error)
            continue
        mask = sample_mask(sample, image.shape[:2])
        new = [] if mask is None else cut_seeds(image, mask)
        found += new
        without += [] if new else [sample.image.name]
    if not found:
        raise DatasetError(
            f"--defects {defects[0]}: none of {counted(len(samples), 'image')} has a mask that "
            "shows a defect; give --masks, a folder of masks named as the images"
        )
    if without:
        say(f"{counted(len(without), 'defective image')} without a mask, or with an empty one, "
            f"left out: {', '.join(without[:3])}")  # fmt: skip
    say(f"{counted(len(found), 'defect')} cut out of {counted(len(samples), 'image')}")
    return found


def _painter(path: Path, seeds: "list[Seed]", steps: int, seed: int) -> "tuple[Painter, str]":
    """What paints defects, opened or trained, and what tells it from others."""
    from offnominal.synthesis.painter_file import learn, open_painter
    from offnominal.synthesis.seeds import digest_of

    if path.exists():
        painter = open_painter(path)
        if seeds and digest_of(seeds) != digest_of(painter.seeds):
            raise OptionError(
                f"--model {path}: was trained on other defects; name another file, or leave "
                "--defects out to use it as it is"
            )
        say(f"{path}: used as it is, trained for {counted(painter.steps, 'step')}")
    elif seeds:
        with progress_bar(steps) as advance:
            painter = learn(path, seeds, steps, seed, say, advance)
        say(f"wrote {path}: with --model it paints more without --defects")
    else:
        raise OptionError(f"--kind diffusion: {path} is not there; give --defects and --masks")
    return painter, painter.digest


def _tell(
    folder: "SyntheticFolder", output: Path, kind: str, made: "list[Made]", objects: "Objects"
) -> None:
    from offnominal.datasets.masks import read_mask
    from offnominal.images import read_image
    from offnominal.synthesis.sheet import write_sheet

    def row(one: "Made") -> Any:
        image = read_image(one.image)
        return read_image(one.good), image, read_mask(one.mask, image.shape[:2])

    step = max(1, len(made) // _ON_SHEET)
    sheet = output / f"sheet_{kind}.png"
    write_sheet(sheet, [row(one) for one in made[::step][:_ON_SHEET]])
    if objects.test is not None:
        where = "on the object" if objects.test.passed else "anywhere"
        say(f"defects lie {where}: {objects.test.reason} (--object)")
    say(f"{folder.home}: {counted(len(made), 'defective image')} of the kind {kind}, with masks")
    typer.echo(f"Look at {sheet}")
