"""What is measured: who copies which data over what to where."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the result: `who` copies `data` over `transport` to `target`."""

    data: str  # pgbench, small, files, empty
    transport: str  # socket, tcp, tls, flow (flow.py)
    # tmpfs, disk, synced, nowhere; archives: tar (in tmpfs), pipe; to memory: increment, and cold or increment-cold of
    # data that is not in the page cache
    target: str
    who: str  # pg_basebackup, ours, cp, pgbackrest
    jobs: int = 1
    # Who verifies: "" by default, "server", or "checksums": those of files, by the server, which are all that
    # is left without page checksums.
    verify: str = ""
    # What archives are compressed with, as -Z has it.
    compress: str = ""
    # --lease: None is what it is by default, 0 none at all.
    lease: int | None = None
    # Threads of the server's that compress for pg_basebackup, beside the one that reads.
    workers: int = 0

    @property
    def group(self):
        """The rows that are compared with each other."""
        compress = f"+{self.compress}" if self.compress else ""
        return f"{self.data}/{self.transport}/{self.target}{compress}"

    @property
    def is_increment(self):
        return self.target.startswith("increment")

    @property
    def key(self):
        jobs = "" if self.who == "pg_basebackup" else f"-{self.jobs}"
        lease = "" if self.lease is None else "-lease" if self.lease else "-no-lease"
        workers = f"-workers-{self.workers}" if self.workers else ""
        return f"{self.group}/{self.who}{jobs}{'-' + self.verify if self.verify else ''}{lease}{workers}"

    @property
    def title(self):
        if self.who == "pg_basebackup":
            return f"pg_basebackup, {self.workers} workers" if self.workers else "pg_basebackup"
        if self.who == "cp":
            return "cp -a" if self.jobs == 1 else "two cp side by side"
        if self.who == "pgbackrest":
            return f"pgBackRest, {self.jobs} processes"
        verify = {"": "", "server": ", server verifies, CRC32C", "checksums": ", as without page checksums"}
        lease = "" if self.lease is None else ", with --lease" if self.lease else ", without a lease"
        return f"ours -j {self.jobs}{verify[self.verify]}{lease}"


def rows(quick):
    """Not the cross product: it would take hours."""

    def group(data, transport, target, jobs, verify=(), cp=False, compress="", lease=False):
        yield Row(data, transport, target, "pg_basebackup", compress=compress)
        for number in jobs:
            yield Row(data, transport, target, "ours", number, compress=compress)
        for who in verify:
            yield Row(data, transport, target, "ours", 2, who)
        if lease:
            yield Row(data, transport, target, "ours", 2, lease=0)
            yield Row(data, transport, target, "ours", 2, lease=300)
        if cp:
            yield Row(data, transport, target, "cp", 1)
            yield Row(data, transport, target, "cp", 2)

    yield from group("pgbench", "socket", "tmpfs", [1, 2, 4, 8], verify=("server", "checksums"), cp=True, lease=True)
    yield Row("pgbench", "socket", "tmpfs", "pgbackrest", 2)
    yield from group("pgbench", "tcp", "tmpfs", [2])
    yield from group("pgbench", "tls", "tmpfs", [2])
    yield from group("pgbench", "socket", "nowhere", [1, 2, 4, 8])
    yield from group("pgbench", "socket", "cold", [1, 2, 4, 8])
    yield from group("small", "flow", "nowhere", [1, 4, 8])
    yield from group("pgbench", "socket", "tar", [1, 2])
    yield from group("pgbench", "socket", "pipe", [1, 2])
    yield from group("pgbench", "socket", "tar", [2], compress="client-zstd:1")
    yield from group("pgbench", "socket", "tar", [1, 2], compress="server-zstd:level=1")
    yield Row("pgbench", "socket", "tar", "pg_basebackup", compress="server-zstd:level=1", workers=2)
    yield Row("pgbench", "socket", "tar", "pgbackrest", 2, compress="server-zstd:level=1")
    yield from group("pgbench", "socket", "tar", [1, 2], compress="server-lz4")
    yield from group("files", "socket", "tmpfs", [1, 2], cp=True)
    yield from group("empty", "socket", "tmpfs", [1, 2])
    yield from group("pgbench", "socket", "increment", [1, 2])
    yield from group("pgbench", "socket", "increment-cold", [1, 2])
    yield from group("pgbench", "socket", "disk", [2], cp=True)
    if not quick:
        yield from group("pgbench", "socket", "synced", [2])
