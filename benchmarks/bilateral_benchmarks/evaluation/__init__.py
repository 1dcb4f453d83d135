"""Accuracy on labelled files, from their bytes to the answer's name, and models compared in pairs.

A room of its own because it measures answers, not time: it needs no load, no report of latency and
no experiment, and its Python API stands alone.
"""

from bilateral_benchmarks.evaluation.evaluate import evaluate as evaluate
from bilateral_benchmarks.evaluation.result import Evaluation as Evaluation
