"""This module reads an object by ranged GETs in parallel, as fast as imagefs's own client can: what reading through the mount is measured against.

`python -m tools.ranged URL SIZE PART STREAMS` waits for a line, reads, and prints the seconds that it took.
"""

import concurrent.futures
import sys
import time

import urllib3

READ = 256 * 1024


def main(url: str, size: int, part: int, streams: int) -> None:
    """Read the first `size` bytes in parts."""
    pool = urllib3.PoolManager(maxsize=streams, retries=False)

    def read(start: int) -> None:
        end = min(start + part, size)
        answer = pool.request("GET", url, headers={"Range": f"bytes={start}-{end - 1}"}, preload_content=False)
        buffer, got = bytearray(READ), 0
        while taken := answer.readinto(buffer):
            got += taken
        answer.release_conn()
        if got != end - start:
            raise RuntimeError(f"{url}: the range from {start} gave {got} bytes with status {answer.status}")

    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(streams) as threads:
        for done in [threads.submit(read, start) for start in range(0, size, part)]:
            done.result()
    print(time.monotonic() - started, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
