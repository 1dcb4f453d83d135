"""Three servers: none of the callers' requests fails, whatever becomes of a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.serving.deploy import fleet
from tests.serving.deploy.models import facts

from bilateral_serving.deploy.container import serve_command

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["nginx", "client"])
def test_no_request_fails_while_servers_come_and_go(
    served: Path, tmp_path: Path, program: Callable[[str], str], way: str
) -> None:
    program("nginx"), program("ip")
    unshare = program("unshare")
    if subprocess.run([unshare, "--net", "--mount", "true"], check=False).returncode:
        pytest.skip("network namespaces are not permitted here")
    _, *arguments = serve_command(*facts(served, stop_s=30), str(served))
    command = [sys.executable, "-m", "bilateral_cli", *arguments]
    script = [sys.executable, fleet.__file__, str(tmp_path), json.dumps(command), way]
    folders = [ROOT, *(ROOT / name for name in ("export", "serving", "benchmarks", "cli"))]
    done = subprocess.run(
        [unshare, "--net", "--mount", *script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    outcomes = json.loads(done.stdout.splitlines()[-1])
    print(way, json.dumps(outcomes, indent=1))
    for phase, outcome in outcomes.items():
        assert outcome["failed"] == 0, f"{phase}: {outcome['reasons']}"
        assert outcome["answered"] > 0, phase
