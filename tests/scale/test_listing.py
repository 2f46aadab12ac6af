"""Images listed one by one are those that are listed at once."""

from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from offnominal.errors import OptionError
from offnominal.paths import PassedOver, find_images, walk_in_order
from offnominal.scale.listing import listed

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("b/2.png", "b.png", "a/x/1.jpg", "a.png", "b/10.PNG", "c/.hidden.png", "c/no.txt",
                 ".away/1.png", "@eaDir/1.png", "run/overlays/1.png", "run/parts/1.png",
                 "run/2.png", "a-1.png", "a/y.png"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    (root / "run" / "run.json").write_text("{}")
    (root / "run" / "results.jsonl").write_text("")
    (root / "a" / "round").symlink_to(root)
    (root / "again").symlink_to(root / "b")
    return root


def test_a_folder_is_listed_in_the_same_order(tree: Path) -> None:
    one, other = PassedOver(), PassedOver()
    assert list(walk_in_order(tree, one)) == find_images(tree, other)
    assert one == other
    assert list(listed([str(tree)], PassedOver())) == [str(each) for each in find_images(tree)]
    both = [str(tree / "b"), str(tree / "a")]
    assert list(listed(both, PassedOver())) == [str(each) for each in find_images(both)]


def test_lists_are_read_as_they_are_needed(tmp_path: Path) -> None:
    names = ["s3://bucket/1.png", "a/./2.png", "ü 3.png"]
    (tmp_path / "list.txt").write_text("\n".join([*names[:1], "", *names[1:]]) + "\r\n")
    table = pa.table({"number": [1, 2, 3], "url": names})
    parquet.write_table(table, tmp_path / "list.parquet")
    wanted = ["s3://bucket/1.png", str(Path("a", "2.png")), "ü 3.png"]
    for name in ("list.txt", "list.parquet"):
        assert list(listed([str(tmp_path / name)], PassedOver())) == wanted
        assert list(islice(listed([str(tmp_path / name)], PassedOver()), 1)) == wanted[:1]


def test_a_mark_of_the_encoding_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\ufeffa.png\nb\ufeff.png\n", "utf-8")
    assert list(listed([str(tmp_path / "list.txt")], PassedOver())) == ["a.png", "b\ufeff.png"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.txt", b"\n", "names no image"),
        ("none.txt", None, "cannot be read"),
        ("broken.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_lists_that_hold_none_are_named(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=f"{name}: {told}"):
        list(listed([str(tmp_path / name)], PassedOver()))


def test_a_table_without_names_says_so(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"number": [1]}), tmp_path / "list.parquet")
    with pytest.raises(OptionError, match="no column named image, path, url or file"):
        list(listed([str(tmp_path / "list.parquet")], PassedOver()))
