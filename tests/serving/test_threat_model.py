"""Every line of the threat model names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "serving" / "SECURITY.md"


def test_each_line_has_its_tests_and_each_test_is_there() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    lines = [row for row in rows if not row.startswith(("| who ", "| what "))]
    assert len(lines) >= 12
    for line in lines:
        named = re.findall(r"`([./a-z_]+\.py)::(test_\w+)`", line)
        assert named, f"no test holds: {line}"
        for file, test in named:
            assert f"def {test}(" in (HERE / file).read_text(), f"{file} has no {test}"
