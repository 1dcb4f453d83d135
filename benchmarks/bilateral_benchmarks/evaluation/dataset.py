"""Labelled files: a folder for each class, images beside their masks, or a table of items."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bilateral_export.errors import UserError
from bilateral_export.files import require_file

Task = Literal["classification", "segmentation", "language"]
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEXTS = (".txt",)
IGNORED = 255


@dataclass(frozen=True)
class Item:
    """One input and what is true of it.

    Attributes:
        id: Its path below the folder, or its line in the table.
        sources: The files, or texts as bytes; two for a model that compares documents.
        label: The class's name in the data; "" for a segmenter or a language model.
        mask: The file with the class of every pixel, for a segmenter.
    """

    id: str
    sources: tuple[Path | bytes, ...]
    label: str = ""
    mask: Path | None = None

    def read(self) -> list[bytes]:
        """Return the bytes of its sources.

        Raises:
            UserError: A file is missing or cannot be read.
        """
        return [
            source if isinstance(source, bytes) else require_file(source, "file").read_bytes()
            for source in self.sources
        ]


def read_dataset(path: Path, task: Task, takes_images: bool) -> list[Item]:
    """Return the items of a folder or a table, in the order of their names or lines.

    A classifier's folder has one folder for each class (torchvision's ImageFolder), a segmenter's
    has `images` and `masks` of the same names, a language model's has .txt files. A table is a TSV
    file, `input<TAB>label` a line, or a JSONL file, an object a line with "file" (relative to the
    table) or "text", and "label" or "mask"; two files or texts in a list for a model that compares
    documents. A single .txt file is one text.

    Args:
        path: The folder or table.
        task: What the model does.
        takes_images: Whether a TSV file's inputs are files; else they are texts.

    Raises:
        UserError: It does not exist, has no items, or an item lacks what the task needs.
    """
    if path.is_dir():
        readers = {"classification": _by_class, "segmentation": _with_masks, "language": _texts}
        items = readers[task](path)
    elif path.suffix == ".jsonl":
        items = list(_from_jsonl(path))
    elif path.suffix == ".txt" and task == "language":
        items = [Item(path.name, (require_file(path, "data"),))]
    else:
        items = list(_from_tsv(path, task, takes_images))
    if not items:
        raise UserError(f"data {path} has no items", "Give a folder or table that has some.")
    needed = {"classification": "label", "segmentation": "mask"}.get(task)
    if needed and (bare := next((item for item in items if not getattr(item, needed)), None)):
        raise UserError(f"data {path}: item {bare.id} has no {needed}", "Give every item one.")
    return items


def _files(folder: Path, endings: Sequence[str]) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()
    )


def _by_class(folder: Path) -> list[Item]:
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise UserError(
            f"data {folder} has no folders",
            "Put each class's files into a folder of its name.",
        )
    return [
        Item(path.relative_to(folder).as_posix(), (path,), of_class.name)
        for of_class in classes
        for path in _files(of_class, IMAGES + TEXTS)
    ]


def _with_masks(folder: Path) -> list[Item]:
    images, masks = folder / "images", folder / "masks"
    for needed in (images, masks):
        if not needed.is_dir():
            raise UserError(
                f"data {folder} has no folder {needed.name}",
                "Put the images into `images` and PNG files of class numbers into `masks`.",
            )
    return [
        Item(
            path.relative_to(images).as_posix(),
            (path,),
            mask=require_file(masks / path.relative_to(images).with_suffix(".png"), "mask"),
        )
        for path in _files(images, IMAGES)
    ]


def _texts(folder: Path) -> list[Item]:
    return [Item(path.relative_to(folder).as_posix(), (path,)) for path in _files(folder, TEXTS)]


def _from_tsv(path: Path, task: Task, takes_images: bool) -> Iterable[Item]:
    for number, row in enumerate(csv.reader(_lines(path), "excel-tab", quoting=csv.QUOTE_NONE), 1):
        if not row:
            continue
        what, known = (row, "") if task == "language" else (row[:-1], row[-1])
        if not what:
            raise UserError(
                f"data {path}: line {number} has one column", "Write input<TAB>label on each line."
            )
        sources = tuple(_file(path, one) if takes_images else one.encode() for one in what)
        if task == "segmentation":
            yield Item(f"{number}: {what[0]}", sources, mask=_file(path, known))
        else:
            yield Item(f"{number}: {what[0]}" if takes_images else str(number), sources, known)


def _from_jsonl(path: Path) -> Iterable[Item]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        wrong = UserError(
            f"data {path}: line {number} is not an item",
            'Write an object such as {"file": "a.png", "label": "cat"} on each line.',
        )
        try:
            item = json.loads(line)
        except ValueError as error:
            raise wrong from error
        if not isinstance(item, dict) or ("file" in item) == ("text" in item):
            raise wrong
        given: Any = item.get("file", item.get("text"))
        several = given if isinstance(given, list) else [given]
        if not several or not all(isinstance(one, str) and one for one in several):
            raise wrong
        sources = tuple(_file(path, one) if "file" in item else one.encode() for one in several)
        yield Item(
            f"{number}: {several[0]}" if "file" in item else str(number),
            sources,
            str(item.get("label", "")),
            _file(path, str(item["mask"])) if "mask" in item else None,
        )


def _file(table: Path, name: str) -> Path:
    return table.parent / name


def _lines(path: Path) -> list[str]:
    try:
        text = require_file(path, "data").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        fix = "Give a folder, a TSV or JSONL file."
        raise UserError(f"data {path} is not UTF-8 text", fix) from error
    return text.split("\n")
