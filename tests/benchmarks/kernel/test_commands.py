"""The kernel's other commands refuse bad input in one line, with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bilateral_benchmarks.kernel import build_report, configurations
from bilateral_export.op.kernel.aot import compile as kernel_compile


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (configurations.main, ["--sm", "12"], "--sm: invalid choice: 12"),
        (configurations.main, ["--workers", "0"], "--workers: 0 is not 1 or more"),
        (kernel_compile.main, ["out", "--workers", "-1"], "--workers: -1 is not 1 or more"),
        (kernel_compile.main, ["out", "--only", "("], "error: --only '(' is no regular expression"),
        (kernel_compile.main, ["out", "--only", "nothing"], "no cubin has 'nothing' in its name"),
    ],
)
def test_arguments_out_of_range(
    main: Callable[[list[str]], int],
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(arguments)
    except SystemExit as exit_:  # argparse's own
        code = exit_.code

    assert code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"cubins": [{"file": "a"}]}'])
def test_a_report_is_made_of_a_build_only(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text(text)

    assert build_report.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not the manifest of such a build" in line
    assert not (tmp_path / "out").exists()
