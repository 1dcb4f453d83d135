"""Reproduce the three claims and write theory.json, theory.png and theory.md.

python -m bilateral_benchmarks.studies.theory
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bilateral_benchmarks.report.machine import Machine, git_revision
from bilateral_benchmarks.studies.theory.boosting import boosting
from bilateral_benchmarks.studies.theory.lipschitz import softmax_lipschitz
from bilateral_benchmarks.studies.theory.perturbation import KERNELS, score_perturbation
from bilateral_benchmarks.studies.theory.report import TheoryReport, markdown, plot
from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, compute, write."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.studies.theory", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parsed = parser.parse_args(arguments)
    report = TheoryReport(
        command=" ".join([parser.prog, *(sys.argv[1:] if arguments is None else arguments)]),
        revision=git_revision(),
        machine=Machine.here(),
        lipschitz=softmax_lipschitz(),
        perturbations=tuple(score_perturbation(kernels) for kernels in KERNELS),
        boosting=boosting(),
    )
    write_text(parsed.out / "theory.json", to_json(report))
    plot(report, parsed.out / "theory.png")
    text = markdown(report)
    write_text(parsed.out / "theory.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
