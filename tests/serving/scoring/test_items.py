"""Where items come from: folders, globs, lists and Parquet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed: the extra [ray]")

import pyarrow as pa
import pyarrow.parquet as pq

from bilateral_export.errors import UserError
from bilateral_serving.scoring.items import IMAGES, Item, Source, list_items


def paths(data: object, **options: str) -> list[str]:
    return [item.path for item in list_items(Source(str(data), **options), IMAGES)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.png", "b/1.JPG", "a.png", "notes.md", ".hidden.png", ".cache/3.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path


def test_a_folder_and_a_glob_are_in_order(folder: Path) -> None:
    expected = [str(folder / name) for name in ("a.png", "b/1.JPG", "b/2.png")]
    assert paths(folder) == expected
    assert paths(folder / "**" / "*.png") == [expected[0], expected[2]]
    assert paths(folder / "a.png") == expected[:1]


def test_links_are_followed_but_not_in_circles_and_pipes_are_left(folder: Path) -> None:
    expected = paths(folder)
    (folder / "b" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    assert paths(folder) == expected
    (folder / "z.png").symlink_to(folder / "nothing")
    assert paths(folder) == [*expected, str(folder / "z.png")]


def test_a_list_has_paths_relative_to_itself(folder: Path) -> None:
    (folder / "b" / "some.txt").write_text("2.png\n\n/elsewhere/x.png\r\n../a.png")
    found = paths(folder / "b" / "some.txt")
    assert found == [str(folder / "b/2.png"), "/elsewhere/x.png", str(folder / "a.png")]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    columns = {
        "file": ["a.png", "b.png", "c.png", None],
        "text": ["one", "two", "three", "four"],
        "split": ["train", "test", "test", "test"],
        "width": [10, 20, 300, 40],
    }
    pq.write_table(pa.table(columns), tmp_path / "table.parquet", row_group_size=3)
    return tmp_path / "table.parquet"


def test_parquet_names_files_or_holds_them(table: Path) -> None:
    there = table.parent
    asked = {"column": "file", "where": "split == 'test' and width < 100"}
    assert paths(table, **asked)[0] == str(there / "b.png")
    assert paths(there, **asked) == paths(table, **asked) == paths(there / "*.parquet", **asked)
    held = list_items(Source(str(table), "file", "text", "split == 'test'"), IMAGES)
    assert list(held) == [
        Item("b.png", str(table), 1),
        Item("c.png", str(table), 2),
        Item(f"{table}#3", str(table), 3),  # it has no name
    ]
    assert paths(table, content="text")[0] == f"{table}#0"  # nor has any of them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no column 'path'"),
        ({"column": "file", "where": "splt == 'test'"}, "cannot be asked"),
        ({"column": "file", "where": "width >"}, "cannot be asked"),
    ],
)
def test_a_wrong_question_says_how_to_ask(
    table: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        paths(table, **options)


def test_what_is_not_there_or_has_no_columns_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        paths(folder / "none")
    with pytest.raises(UserError, match="needs columns"):
        paths(folder, where="width > 1")
    (folder / "broken.parquet").write_text("not Parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        paths(folder / "broken.parquet")
