"""``offnominal predict`` by several workers: the driver, which hands out shards and joins parts."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import typer

from offnominal.atomic import writing
from offnominal.cli import options
from offnominal.cli.picture_names import picture_names
from offnominal.cli.results import (
    HELD,
    PICTURES_AS,
    check_free,
    check_ours,
    check_page,
    claim,
    clear,
    parse_save,
    read_run,
)
from offnominal.cli.rows import PAGE, RESULTS, read_rows, write_csv, write_tables
from offnominal.cli.terminal import (
    ANOMALIES,
    UNREADABLE,
    count,
    names_from_stdin,
    progress_bar,
    say,
)
from offnominal.errors import OptionError
from offnominal.paths import PassedOver
from offnominal.scale.engines import engine_for
from offnominal.scale.facts import Facts, facts_of
from offnominal.scale.listing import listed, stamp_of
from offnominal.scale.parts import Parts, Store, is_local
from offnominal.scale.scoring import Model, Scorer, digest_of, error_line, weights_of
from offnominal.scale.shards import Shard, cut, run_shards
from offnominal.text import printable

__all__ = ["predict_by_workers"]

_PICTURES = ("overlay", "map", "mask", "cloud", "page")
_MARK = "parts/run.json"
_FIRST = 8  # images, of which one that can be read shows how the model runs


@dataclass
class Ended:
    """What became of the images of a run.

    Attributes
    ----------
    decided : Counter of str
        Images by their decision: True, False and None, as words.
    errors : list of (str, str)
        Images of this run that could not be used, and why; the first thousand.
    unreadable : int
        How many could not be used.
    unseen : Counter of str
        What was not looked at, in words, and of how many images.
    """

    decided: Counter[str]
    errors: list[tuple[str, str]]
    unreadable: int
    unseen: Counter[str]


def predict_by_workers(
    how: tuple[list[str], str | None, str, str, str | None, str | None, str | None],
    places: tuple[str | None, str | None, bool, bool],
    threshold: float | None,
    workers: int | None,
    ray: str | None,
    fail_on_anomaly: bool,
) -> None:
    """Score images in parts, and say what became of them."""
    arguments, weights, device, engine, endpoint, key_variable, category = how
    output, save, resume, overwrite = places
    if len(arguments) < 2 or output in (None, "-", ""):
        raise OptionError(
            "--workers, --ray: give a model file, images and a folder for the results, as "
            "`offnominal predict part.offn new/ -o results --workers 4`"
        )
    if threshold is not None:
        options.check_threshold(threshold)
    path, *names = arguments
    listed = len(names) == 1 and Path(names[0]).suffix.lower() in (".txt", ".parquet")
    options.check_given(path, [] if listed else names, "predict", weights, device, engine)
    names = list(map(str, names_from_stdin())) if names == ["-"] else names
    model = Model(
        path, "", weights or weights_of(path), device, engine, endpoint, key_variable, category
    )
    passed = PassedOver()
    done = names, str(output), save, resume, overwrite, threshold, workers, ray, passed
    try:
        ended, facts = _predict_in_parts(model, *done)
    except (KeyboardInterrupt, SystemExit) as stop:
        say("stopped; the same command goes on with what is missing")
        stop.told = True  # type: ignore[union-attr]  # for whoever catches it last
        raise
    if facts.untrained:
        told = f"scores say nothing about {facts.method}"
        say(f"weights not pretrained ({facts.untrained}): {told}")
    _tell(ended, str(output))
    if passed.total():
        say(str(passed))
    if fail_on_anomaly and ended.decided["True"]:
        raise typer.Exit(ANOMALIES)
    if fail_on_anomaly and ended.decided["None"]:
        raise OptionError("--fail-on-anomaly: some images have no decision; see the results")
    if ended.unreadable:
        told = ": `error` in the results says why"
        say(f"{count(ended.unreadable, 'image')} could not be used{told}")
        raise typer.Exit(UNREADABLE)


def _predict_in_parts(
    model: Model,
    names: Sequence[str],
    output: str,
    save: str | None,
    resume: bool,
    overwrite: bool,
    threshold: float | None,
    workers: int | None,
    ray: str | None,
    passed: PassedOver,
) -> tuple[Ended, Facts]:
    """Score images by the workers of an engine, and join what they wrote into one result.

    The same command goes on where an earlier one stopped, whatever stopped it.
    """
    kinds = parse_save(save or "json,csv")
    engine = engine_for(workers, ray)
    if "page" in kinds and not is_local(output):
        raise OptionError(f"--save page: a page is read from a disk; leave it out for {output}")
    store = Store(output)
    if output.startswith("memory:"):
        told = "the memory of this process, which is gone when it ends"
        raise OptionError(f"-o {output}: is {told}; name a folder, or a URL as s3://bucket/run")
    if store.local:
        folder = Path(store.root)  # of file:// as well
        check_free(folder, resume, overwrite)
        inside = {str(Path(one).absolute()) for one in names if Path(one).is_dir()}
        if str(folder.absolute()) in inside:
            told = "holds images that are to be scored; name a folder of its own for the results"
            raise OptionError(f"-o {output}: {told}")
    elif not (resume or overwrite) and store.is_there(RESULTS):
        raise OptionError(f"-o {output}: {HELD}")
    parts = Parts(store)
    images: Iterator[str] = listed(names, passed)
    first = list(islice(images, _FIRST))
    images = chain(first, images)
    pictures: dict[str, str] = {}
    if kinds & {*_PICTURES}:  # whose names depend on those of all images
        whole = list(images)
        given = picture_names([Path(one) for one in whole])
        pictures = {one: given[Path(one)] for one in whole}
        images = iter(whole)
    model.digest = digest_of(model.path)
    earlier = None if overwrite else _noted(store)
    if model.engine == "auto" and earlier and earlier["model"] == model.digest:
        # Another may be the fastest today, and would not be what the earlier parts are made with.
        model = replace(model, engine=str(earlier.get("engine") or "auto"))
    facts = facts_of(model, threshold, first)
    if "mask" in kinds and not facts.masks:
        raise OptionError(
            "--save mask needs a threshold, and there is none; calibrate a model, or leave mask out"
        )
    model = replace(model, engine=facts.engine or model.engine)
    run: dict[str, Any] = {"model": model.digest}
    run |= {"endpoint": model.endpoint} if model.endpoint else {}
    run |= {"category": model.category} if model.category else {}
    run |= {} if facts.threshold is None else {"threshold": facts.threshold}
    run |= {"pictures": PICTURES_AS}
    with _claimed(store):
        _prepare(
            store, parts, kinds, run, {"save": sorted(kinds), "engine": model.engine}, overwrite
        )
        scorer = Scorer(model, parts, kinds, pictures, facts.threshold)
        total = len(pictures) or None
        ended, ticked = _score(scorer, images, engine, parts, total)
        _join(store, parts, ticked, kinds, run, _about(model, facts), ended)
    return ended, facts


def _score(
    scorer: Scorer, images: Iterable[str], engine: Any, parts: Parts, total: int | None
) -> tuple[Ended, list[str]]:
    """Have every shard's part written; returns the names of these."""
    ended = Ended(Counter(), [], 0, Counter())
    ticked: list[str] = []
    done = 0

    def give_up(shard: Shard, reason: str) -> dict[str, Any]:
        told = f"ends the process that reads it ({reason}); look at it by itself"
        parts.write(shard, [error_line(shard.items[0], told)])
        return {"errors": [(shard.items[0], told)]}

    with progress_bar(total) as advance:
        shards = parts.left(cut(images, stamp_of))
        for shard, told in run_shards(scorer, shards, engine, parts.has, parts.written, give_up):
            ticked.append(shard.name)
            done += len(shard.items)
            if told:
                ended.errors += told["errors"][: 1000 - len(ended.errors)]
                ended.unseen.update(told.get("unseen", {}))
            advance("predict", done)
    return ended, ticked


def _join(
    store: Store,
    parts: Parts,
    ticked: list[str],
    kinds: frozenset[str],
    run: dict[str, Any],
    about: list[tuple[str, str]],
    ended: Ended,
) -> None:
    """The files that one process would have written, from the parts."""

    def lines() -> Iterator[str]:
        for line in parts.lines(ticked):
            row = json.loads(line)
            if "error" in row:
                ended.unreadable += 1
            else:
                ended.decided[str(row["is_anomalous"])] += 1
            yield line

    if store.local:
        folder = Path(store.root)
        with writing(folder / "run.json") as temporary:
            temporary.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        with writing(folder / RESULTS) as temporary, temporary.open("wb") as file:
            file.writelines(line.encode() + b"\n" for line in lines())
        write_tables(folder, kinds, lambda: read_rows(folder / RESULTS), about)
        return
    # A store takes a file as a whole, in pieces as they come; it is there when it is closed.
    with store.system.open(f"{store.root}/{RESULTS}", "wb") as file:
        for line in lines():
            file.write(line.encode() + b"\n")
    if "csv" in kinds:
        rows = (json.loads(line) for line in parts.lines(ticked))
        with store.system.open(f"{store.root}/results.csv", "wb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            write_csv(text, rows)
            text.flush()
            text.detach()


def _prepare(
    store: Store,
    parts: Parts,
    kinds: frozenset[str],
    run: dict[str, Any],
    more: dict[str, Any],
    overwrite: bool,
) -> None:
    """Refuse what is of another run, or take it away; then see which parts are there."""
    if store.local:
        folder = Path(store.root)
        check_ours(folder, overwrite)
        if "page" in kinds:
            check_page(folder / PAGE)
        if overwrite:
            clear(folder)
        elif (known := read_run(folder / "run.json")) is not None and known != run:
            told = "its results are of another model or other options; --overwrite starts afresh"
            raise OptionError(f"-o {folder}: {told}")
    mark = (json.dumps(run | more, indent=1) + "\n").encode()
    noted = _noted(store)
    if noted is None and (others := sorted(store.names(Parts.folder))):
        told = f"parts/ holds something else ({printable(others[0])}); name another folder"
        raise OptionError(f"-o {store.url}: {told}, or take it away")
    if overwrite:
        parts.clear()
        noted = None
    parts.look()
    if noted is None:
        store.write(_MARK, mark)
    elif noted != run | more:
        told = "its parts are of another model or other options; --overwrite starts afresh"
        raise OptionError(f"-o {store.url}: {told}")


def _noted(store: Store) -> dict[str, Any] | None:
    """What the parts of an earlier run depend on; None where there was none."""
    if not store.is_there(_MARK):
        return None
    try:
        run = json.loads(store.read(_MARK))
    except (ValueError, RecursionError):
        return None
    return run if isinstance(run, dict) and isinstance(run.get("model"), str) else None


def _about(model: Model, facts: Facts) -> list[tuple[str, str]]:
    """What the results are made with, as their page tells it."""
    return [
        ("Model", printable(Path(model.path))),
        ("Method", facts.method),
        *([("Category", printable(model.category))] if model.category else []),
        ("Threshold", facts.limit),
        *([("Engine", facts.engine)] if facts.engine else []),
    ]


@contextmanager
def _claimed(store: Store) -> Iterator[None]:
    """Keep a folder to one driver; of a store nothing is locked, and two would write the same."""
    if not store.local:
        yield
        return
    lock = claim(Path(store.root))
    try:
        yield
    finally:
        lock.release()


def _tell(ended: Ended, where: str) -> None:
    """Say what became of the images."""
    images = count(ended.decided.total(), "image", "0")
    undecided = ended.decided["None"]
    anomalous = f"{ended.decided['True']} anomalous"
    said = f"{undecided} without a decision (no threshold)" if undecided else anomalous
    say(f"{images}, {said}; results in {where}")
    for words, number in ended.unseen.most_common():
        say(f"not inspected: of {count(number, 'image')}, {words}")
