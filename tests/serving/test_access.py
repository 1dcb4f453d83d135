"""The token of a start is found by its user, for its port, on this machine; by nobody else."""

import os
import stat

import pytest

from bilateral_export.errors import UserError
from bilateral_serving.access import find_token, published_token


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_is_found_for_loopback_addresses_of_its_port_while_the_server_runs():
    with published_token(8001) as token:
        assert [find_token(f"{host}:8001") for host in ("localhost", "127.0.0.1", "[::1]")] == [
            token
        ] * 3
        assert find_token("localhost:8002") is None
    assert find_token("localhost:8001") is None


def test_is_never_looked_up_for_another_machine():
    with published_token(8001):
        assert find_token("10.0.0.7:8001") is None
        assert find_token("localhost.example.org:8001") is None
        assert find_token("127.example.org:8001") is None


def test_is_new_at_every_start_and_the_later_start_owns_the_file():
    with published_token(8001) as first, published_token(8001) as second:
        assert first != second
        assert find_token("localhost:8001") == second
    assert find_token("localhost:8001") is None


def test_lies_in_a_file_that_only_its_user_can_read(runtime_directory):
    with published_token(8001):
        path = runtime_directory / "bilateral" / "8001"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_can_read_is_not_trusted(runtime_directory):
    with published_token(8001):
        (runtime_directory / "bilateral" / "8001").chmod(0o644)
        assert find_token("localhost:8001") is None


def test_a_link_in_place_of_the_file_is_not_followed(runtime_directory):
    with published_token(8001) as token:
        elsewhere = runtime_directory / "elsewhere"
        elsewhere.write_text(token)
        elsewhere.chmod(0o600)
        (runtime_directory / "bilateral" / "8003").symlink_to(elsewhere)
        assert find_token("localhost:8003") is None


def test_a_directory_that_others_can_enter_is_refused(runtime_directory):
    (runtime_directory / "bilateral").mkdir(mode=0o700)
    (runtime_directory / "bilateral").chmod(0o777)
    with pytest.raises(UserError, match="only this user"), published_token(8001):
        pass


def test_without_a_runtime_directory_the_temporary_one_holds_it(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with published_token(8001) as token:
        assert find_token("127.0.0.1:8001") == token
        assert (tmp_path / f"bilateral-{os.geteuid()}" / "8001").is_file()
