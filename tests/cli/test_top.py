"""`bilateral top` without a server, and of a page that a file serves."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = """# TYPE nv_inference_request_success counter
nv_inference_request_success{model="[bold]m",version="1"} 7
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()


def test_it_is_printed_once_and_names_are_no_markup(bilateral, url: str, tmp_path: Path) -> None:
    look = ("top", "--metrics-url", url, "--interval", "0.1")
    assert "[bold]m" in bilateral(*look, "--once").out
    (row,) = bilateral(*look, "--json").json["rows"]
    assert (row["model"], row["rate"]) == ("[bold]m", 0.0)
    assert bilateral(*look, "--page", tmp_path / "top.html").code == 0
    assert "[bold]m" in (tmp_path / "top.html").read_text()


def test_no_server_is_one_line(bilateral) -> None:
    refused = bilateral("top", "--metrics-url", "http://127.0.0.1:1/metrics", "--once")
    assert refused.code == 2
    assert "no metrics at" in refused.err
