"""Folders and tables of labelled files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bilateral_benchmarks.evaluation.dataset import Task, read_dataset
from bilateral_export.errors import UserError


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/deep/1.JPG", "a/x.txt", "a/.hidden.png", "a/notes.md", "top.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    items = read_dataset(tmp_path, "classification", True)
    assert [(item.id, item.label) for item in items] == [
        ("a/x.txt", "a"),
        ("b/2.png", "b"),
        ("b/deep/1.JPG", "b"),
    ]
    assert items[0].read() == [b"x"]


def test_a_table_of_texts_and_one_of_files(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text('[MAX 1 2 ]\t2\n\nsays "so"\t7\r\n', newline="")
    texts = read_dataset(table, "classification", False)
    assert [(item.read(), item.label) for item in texts] == [
        ([b"[MAX 1 2 ]"], "2"),
        ([b'says "so"'], "7"),
    ]
    table.write_text("a.png\tcat\n")
    (item,) = read_dataset(table, "classification", True)
    assert (item.sources, item.label) == ((tmp_path / "a.png",), "cat")
    with pytest.raises(UserError, match=r"file .*a.png does not exist"):
        item.read()


def test_a_jsonl_file_of_pairs(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    rows = [{"text": ["one", "two"], "label": 1}, {"file": "a.txt", "label": "no"}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_dataset(table, "classification", False)
    assert (first.read(), first.label) == ([b"one", b"two"], "1")
    assert (second.sources, second.label) == ((tmp_path / "a.txt",), "no")


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("t.tsv", "alone\n", "classification", "line 1 has one column"),
        ("t.tsv", "", "classification", "is empty"),
        ("t.jsonl", "{}\n", "classification", "line 1 is not an item"),
        ("t.jsonl", "[1]\n", "classification", "line 1 is not an item"),
        ("t.jsonl", "nonsense\n", "classification", "line 1 is not an item"),
        ("t.jsonl", '{"file": 3}\n', "classification", "line 1 is not an item"),
        ("t.jsonl", '{"text": "a"}\n', "classification", "item 1 has no label"),
        ("t.jsonl", '{"file": "a.png"}\n', "segmentation", "has no mask"),
        ("t.tsv", "\xff\t1\n", "classification", "is not UTF-8"),
    ],
)
def test_a_table_that_does_not_do_is_refused(
    tmp_path: Path, name: str, content: str, task: Task, message: str
) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path / name, task, False)


def test_folders_that_do_not_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folders"):
        read_dataset(tmp_path, "classification", True)
    with pytest.raises(UserError, match="has no folder images"):
        read_dataset(tmp_path, "segmentation", True)
    with pytest.raises(UserError, match="has no items"):
        read_dataset(tmp_path, "language", False)
    with pytest.raises(UserError, match="does not exist"):
        read_dataset(tmp_path / "none", "classification", True)
