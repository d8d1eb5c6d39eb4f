"""This module measures imagefs against its peers in the same run, and prints tables.

Every figure is a median, and where there is a peer the two are measured in turn, so that a busy moment hits both. Whatever comes
from an S3 server comes over a link with 30 ms to the first byte and 1 Gb/s, which counts the bytes itself.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NoReturn

from tools.boot_bench import boots
from tools.catalog_bench import catalog
from tools.crash_bench import churn, restart
from tools.fault_bench import faults
from tools.fetch_bench import crowd, first_byte, memory, sequential, writes
from tools.life_bench import life
from tools.local_bench import local
from tools.mount_bench import attributes, creation
from tools.node import Failed
from tools.plot import plot
from tools.replay import replay
from tools.rows import Bench, Finding, PeerFigures, Row
from tools.tables import as_json, show

Section = Callable[[Bench], Iterable[Finding]]

SECTIONS: Final[dict[str, Section]] = {
    "creation": creation,
    "life": life,
    "local": local,
    "attributes": attributes,
    "writes": writes,
    "sequential": sequential,
    "firstbyte": first_byte,
    "crowd": crowd,
    "memory": memory,
    "faults": faults,
    "restart": restart,
    "churn": churn,
    "catalog": catalog,
    "replay": replay,
    "boots": boots,
}
"""In the order of a full run: what takes long comes last."""


def main() -> int:
    """Measure what is asked for; return the exit status."""
    wanted = options()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    directory = Path(tempfile.mkdtemp(prefix="imagefs-bench-", dir=wanted.directory))
    bench = Bench(directory, wanted.quick, wanted.rounds or (1 if wanted.quick else 3))
    findings: list[Finding] = []
    status = 0
    try:
        for name in wanted.sections or SECTIONS:
            started = time.monotonic()
            for finding in measured(name, bench):
                findings.append(finding)
                status |= isinstance(finding, Row) and finding.what == failure(name)
            print(f"tools/bench: {name} took {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        status = 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        show(findings, is_whole=not wanted.sections)
        write(findings, wanted)
    return status


def options() -> argparse.Namespace:
    """Return what is asked for; ends the process if that makes no sense."""
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"what to measure, by default all: {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="one round and smaller images: to see that it works, not to compare")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each peer has its turn, by default 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the peers' times and bytes as SVG")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), metavar="DIR", help="where to work: a disk with 20 GB of room")
    wanted = parser.parse_args()
    unknown = set(wanted.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    if wanted.rounds is not None and wanted.rounds < 1:
        parser.error("--rounds: at least one")
    return wanted


def interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
    """End what is under way in order. From here on signals are ignored: mounts and servers are taken down first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def failure(name: str) -> str:
    """Return what the row of a section that could not be measured says."""
    return f"section {name}"


def measured(name: str, bench: Bench) -> Iterator[Finding]:
    """Yield a section's findings; if it fails, a row that says so in their place, so that the others are measured all the same."""
    print(f"tools/bench: measuring {name}", file=sys.stderr, flush=True)
    try:
        yield from SECTIONS[name](bench)
    except (Failed, OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"tools/bench: FAILED: {name}: {error}", file=sys.stderr, flush=True)
        yield Row(failure(name), "", None, note=f"FAILED: {error}")
    finally:
        shutil.rmtree(bench.directory / name, ignore_errors=True)


def write(findings: list[Finding], wanted: argparse.Namespace) -> None:
    """Write the files that are asked for."""
    if wanted.json is not None:
        wanted.json.write_text(json.dumps(as_json(findings, quick=wanted.quick), indent=2) + "\n", encoding="utf-8")
    if wanted.plot is not None:
        wanted.plot.write_text(plot([finding for finding in findings if isinstance(finding, PeerFigures)]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
