"""Tools of the host: what they are run with, and what is told when they fail."""

import sys
from pathlib import Path

import pytest

from imagefs import child
from imagefs.child import find_tool, last_words, run_tool
from imagefs.errors import ImagefsError, InvalidInput, NoSpace
from imagefs.instances.direct import MEMORY_LIMIT


def test_a_tool_gets_nothing_of_the_daemons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither its environment, where credentials may be, nor its input; what it is to have besides is added."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    run_tool(["/bin/sh", "-c", f"env >{tmp_path}/env; cat >{tmp_path}/input"], "a test", 30, {"OWN": "value"})
    found = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {key: found[key] for key in ("PATH", "LC_ALL", "OWN")} == {"PATH": child.PATH, "LC_ALL": "C", "OWN": "value"}
    assert "AWS_SECRET_ACCESS_KEY" not in found
    assert (tmp_path / "input").read_bytes() == b""


THREADS = """
import ctypes, threading
allocate, end = ctypes.CDLL(None).malloc, threading.Event()
def work(begun):
    allocate(1000)
    begun.set()
    end.wait()
for _ in range(64):
    begun = threading.Event()
    threading.Thread(target=work, args=(begun,), daemon=True).start()
    begun.wait()
"""


def test_a_tools_threads_find_room_under_a_limit_of_memory() -> None:
    """As many threads as QEMU has for its disks, each of which allocates something, fit the limit that direct disks are copied under."""
    run_tool(["prlimit", f"--as={MEMORY_LIMIT}", sys.executable, "-c", THREADS], "a test", 60)


def test_tools_of_the_administrator_are_found() -> None:
    """/sbin is looked in, which a user's PATH may lack."""
    assert find_tool(["mkfs.ext4"], "e2fsprogs", "a test").endswith("sbin/mkfs.ext4")
    assert find_tool(["no-such-tool", "sh"], "dash", "a test").endswith("bin/sh")


def test_missing_tools_name_their_package() -> None:
    """All that would do are named."""
    with pytest.raises(InvalidInput, match="a test: no-such-tool or nor-this is not installed: install the package tools"):
        find_tool(["no-such-tool", "nor-this"], "tools", "a test")


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        ("echo one; echo two >&2; echo; exit 4", ImagefsError, "a test: /bin/sh failed with status 4: two"),
        ("echo 'Disk quota exceeded'; exit 1", NoSpace, "free some room"),
        ("exec sleep 60", ImagefsError, "did not end within 0 s"),
    ],
)
def test_failures_say_why(script: str, error: type[ImagefsError], reason: str) -> None:
    """The last words, a full disk as such, and what takes too long."""
    with pytest.raises(error, match=reason):
        run_tool(["/bin/sh", "-c", script], "a test", 0.4 if "sleep" in script else 30)


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    """A file that is no program, and one that is not there."""
    (tmp_path / "tool").touch()
    with pytest.raises(ImagefsError, match="cannot be run: Permission denied"):
        run_tool([str(tmp_path / "tool")], "a test", 30)
    with pytest.raises(ImagefsError, match="cannot be run: No such file"):
        run_tool([str(tmp_path / "missing")], "a test", 30)


def test_last_words_fit_a_message() -> None:
    """The last line that says something, cut."""
    assert last_words("a\n b \n\n") == "b"
    assert last_words(" \n") == "it gave no reason"
    assert len(last_words("x" * 1000)) == 200
