"""What a table shows depends on the screen's width; what can be read in it does not."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bilateral_benchmarks.report.tables import Table
from bilateral_cli.bench import output

TABLE = Table(
    "runtimes",
    ("", *(f">measurement{number}" for number in range(8))),
    (
        ("onnxruntime, exported", *(f"{number}.50" for number in range(8))),
        ("onnxruntime, lowered", "no GPU", *[""] * 7),
    ),
)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_name_and_number_can_be_read(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(output, "out", Console(file=shown, width=width))
    output.print_table(TABLE)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for column in TABLE.columns[1:]:
        assert column.removeprefix(">") in words
    for name, *values in TABLE.rows:
        assert name in " ".join(words)
        assert all(value in " ".join(words) for value in values)
