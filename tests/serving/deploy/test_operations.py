"""The operations guide explains the alarms that `bilateral deploy` writes, all of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3] / "serving"


def test_every_alarm_is_in_the_guide_and_no_other() -> None:
    written = (ROOT / "bilateral_serving" / "deploy" / "alerts.py").read_text()
    guide = (ROOT / "OPERATIONS.md").read_text()
    alarms = set(re.findall(r'"(Bilateral[A-Z]\w+)"', written))
    assert len(alarms) >= 6
    assert alarms == set(re.findall(r"^\| (Bilateral\w+) \|", guide, re.MULTILINE))
