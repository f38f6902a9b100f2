"""The clusters that are backed up: made once, kept, and started for each run of the bench.

1. "pgbench": two thirds are pgbench's tables, one third is a table of random words. pgbench's
   pages compress twenty times, which would flatter every compressor; the words compress two
   times with lz4 and three times with zstd.

   "small" is the same of 600 MB, for networks that are slow.

2. "files": a fresh cluster with many files of one page in base/5, the directory of the database
   "postgres". They are copies of the first page of pg_class. A page's checksum depends on its
   content and its block number, not on its file: so all of them are verified, and found good,
   as pages of real relations would be. A hundred thousand relations made by CREATE TABLE
   would take a quarter of an hour, with catalogs of a gigabyte beside them. No relation
   of the catalog has these file numbers, and the server does not look at them.

3. "empty": the same with many files of nothing.

All are made with page checksums and by the programs of the server that is measured.

For increments 5 % of the blocks of "pgbench" are changed each time the bench is run, at random: a row of each is
locked, which is in WAL and changes nothing else.
"""

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
from array import array

BLOCK = 8192
FIRST_FILE = 1_000_000  # file number: beyond what initdb uses
CHANGED = 0.05  # of the blocks, for increments

# What a backup leaves out, and cp is not given either (PostgreSQL, basebackup.c, excludeDirContents
# and excludeFiles). The directories are empty in a backup.
LEFT_OUT = {
    "pg_wal", "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp",
    "pg_subtrans", "postmaster.pid", "postmaster.opts",
}  # fmt: skip

LOADING = """
wal_level = minimal
max_wal_senders = 0
fsync = off
full_page_writes = off
maintenance_work_mem = 256MB
listen_addresses = ''
"""

# Autovacuum and the background writer would count as the server's work. Nothing is dirty, so that
# the checkpoint of each backup is short.
MEASURING = """
shared_preload_libraries = 'pg_parallel_backup'
max_wal_senders = 20
max_logical_replication_workers = 0
bgwriter_lru_maxpages = 0
listen_addresses = '127.0.0.1'
"""

ALWAYS = """
shared_buffers = 128MB
autovacuum = off
checkpoint_timeout = 1d
max_wal_size = 8GB
recovery_init_sync_method = syncfs
min_wal_size = 80MB
"""


def environment(install, scratch):
    """What every program that is measured is run with."""
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": scratch,
        "LC_ALL": "C",
        "LD_LIBRARY_PATH": os.path.join(install, "lib"),
        "TMPDIR": scratch,
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def words(megabytes):
    """Lines for COPY: a number and some 500 bytes of random words, the same on every machine."""
    source = random.Random(1986)
    letters, weights = "etaoinshrdlucmfwypvbgk", [12, 9, 8, 8, 7, 7, 6, 6, 6, 4, 4, 3, 3, 3] + [2] * 5 + [1] * 3
    vocabulary = ["".join(source.choices(letters, weights, k=source.randint(3, 9))) for _ in range(1000)]
    # Two words for each number of 16 bits: so this is quick enough in Python.
    pairs = [f"{source.choice(vocabulary)} {source.choice(vocabulary)}" for _ in range(65536)]
    number = left = 0
    left = megabytes * 1_000_000
    while left > 0:
        picks = array("H", source.randbytes(2 * 40_000))
        lines = []
        for at in range(0, len(picks), 40):
            number += 1
            lines.append(f"{number}\t{' '.join(map(pairs.__getitem__, picks[at:at + 40]))}\n")
        chunk = "".join(lines).encode()
        left -= len(chunk)
        yield chunk


class Cluster:
    """A data directory, and the server that runs on it while the bench does."""

    def __init__(self, name, home, install, user, scratch, env):
        self.name = name
        self.home = home
        self.data = os.path.join(home, "data")
        self.install, self.user, self.scratch, self.env = install, user, scratch, env
        self.log = os.path.join(scratch, f"{name}.log")
        self.port = None
        self.postmaster = None
        self.password = None
        self.flow = self.flow_port = None
        self.bytes = self.files = 0

    # --- making it

    def made(self, wanted):
        try:
            with open(os.path.join(self.home, "made.json"), encoding="utf-8") as file:
                found = json.load(file)
        except (FileNotFoundError, ValueError):
            return False
        self.password = found.pop("password", None)
        return found == wanted

    def make(self, wanted, fill):
        """Makes the cluster, unless an earlier run has. `fill` puts the data there."""
        if not self.made(wanted):
            shutil.rmtree(self.home, ignore_errors=True)
            os.makedirs(self.home, mode=0o700)
            self.password = secrets.token_hex(16)
            password_file = os.path.join(self.scratch, "password")
            with open(password_file, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(self.password)
            self.program(
                "initdb", "-D", self.data, "-U", self.user, "--auth-local=peer", "--auth-host=scram-sha-256",
                "--pwfile", password_file, "--data-checksums", "--no-locale", "--encoding=UTF8", "--no-sync",
            )  # fmt: skip
            os.unlink(password_file)
            with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as file:
                file.write("include = 'bench.conf'\n")
            fill(self)
            # Nothing is left to be written to disk while something is measured.
            subprocess.run(["sync", "-f", self.data], check=True)
            with open(os.path.join(self.home, "made.json"), "w", encoding="utf-8") as file:
                json.dump({**wanted, "password": self.password}, file)
            os.chmod(file.name, 0o600)

    def fill_pgbench(self, megabytes):
        self.start(LOADING)
        self.program("createdb", *self.local(), "bench")
        scale = max(1, round(megabytes * 2 / 3 / 15))
        self.program("pgbench", *self.local(), "-i", "-q", "-s", str(scale), "bench")
        command = [self.path("psql"), *self.local(), "-Xq", "-v", "ON_ERROR_STOP=1", "bench"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=self.env) as psql:
            # Made and filled in one transaction: no WAL, and no row needs a second look.
            psql.stdin.write(b"BEGIN; CREATE TABLE words (id int, t text);\nCOPY words FROM STDIN (FREEZE);\n")
            # A line takes a little more on a page than in COPY: headers, page ends.
            for chunk in words(max(1, round(megabytes / 3 * 0.93))):
                psql.stdin.write(chunk)
            psql.stdin.write(b"\\.\nCOMMIT;\n")
        if psql.returncode:
            raise RuntimeError("psql could not fill the table of words")
        self.stop("fast")

    def fill_files(self, count, pages=1):
        directory = os.path.join(self.data, "base", "5")
        with open(os.path.join(directory, "1259"), "rb") as file:
            page = file.read(BLOCK * pages)
        for number in range(FIRST_FILE, FIRST_FILE + count):
            descriptor = os.open(os.path.join(directory, str(number)), os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(descriptor, page)
            os.close(descriptor)

    # --- running it

    def path(self, program):
        return os.path.join(self.install, "bin", program)

    def local(self):
        return ["-h", self.scratch, "-p", str(self.port), "-U", self.user]

    def program(self, name, *arguments):
        done = subprocess.run(
            [self.path(name), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}\n{done.stdout.decode(errors='replace')}")

    def start(self, settings):
        self.stop("immediate")  # what an earlier run, killed, may have left
        self.port = free_port()
        with open(os.path.join(self.data, "bench.conf"), "w", encoding="utf-8") as file:
            file.write(f"{ALWAYS}{settings}port = {self.port}\nunix_socket_directories = '{self.scratch}'\n")
        # Not through self.program: the server would hold its pipe open.
        done = subprocess.run(
            [self.path("pg_ctl"), "-D", self.data, "-l", self.log, "-s", "-w", "-t", "300", "start"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.env, check=False,
        )  # fmt: skip
        if done.returncode:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                raise RuntimeError("the server did not start\n" + "".join(file.readlines()[-10:]))
        with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
            self.postmaster = int(file.readline())

    def start_measuring(self, certificate, summaries=False):
        tls = f"ssl = on\nssl_cert_file = '{certificate}.crt'\nssl_key_file = '{certificate}.key'\n" if certificate else ""
        self.start(MEASURING + ("summarize_wal = on\n" if summaries else "") + tls)
        sizes = list(self.sizes())
        self.files, self.bytes = len(sizes), sum(size for _, size in sizes)
        if not self.has_patch():
            self.sql("CREATE EXTENSION IF NOT EXISTS pg_parallel_backup", "postgres")

    def has_patch(self):
        """Whether the server has the replication commands; else the client takes the SQL procedures."""
        command = [self.path("psql"), *self.local(), "-XAtc", "SHOW pg_parallel_backup.replication_grammar", "postgres"]
        return subprocess.run(command, stdout=subprocess.PIPE, env=self.env, check=True).stdout.strip() == b"on"

    # --- for increments

    def change(self):
        """Changes some blocks of the large tables."""
        for table in ("pgbench_accounts", "words"):
            self.sql(
                f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE ctid = ANY (ARRAY(SELECT format('(%s,1)', block)::tid "
                f"FROM generate_series(0, pg_relation_size('{table}') / {BLOCK} - 1) block "
                f"WHERE random() < {CHANGED})) FOR UPDATE) x"
            )
        self.sql("CHECKPOINT")

    def sql(self, query, database="bench"):
        self.program("psql", *self.local(), "-Xq", "-v", "ON_ERROR_STOP=1", "-c", query, database)

    def chill(self):
        """Has the kernel forget all of it."""
        for name, _ in self.sizes():
            descriptor = os.open(os.path.join(self.data, name), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def start_flow(self):
        """A slow network in front of the server, until that is stopped; its port."""
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "flow.py")
        self.flow = subprocess.Popen(
            [sys.executable, script, str(self.port)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self.env
        )
        self.flow_port = int(self.flow.stdout.readline())
        return self.flow_port

    def stop(self, mode):
        self.postmaster = None
        if self.flow:
            self.flow.kill()
            self.flow.wait()
            self.flow = None
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            subprocess.run(
                [self.path("pg_ctl"), "-D", self.data, "-s", "-m", mode, "-w", "stop"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=self.env, check=False,
            )  # fmt: skip

    def conninfo(self, transport):
        if transport == "socket":
            return f"host={self.scratch} port={self.port} user={self.user}"
        mode = {"tcp": "disable", "flow": "disable", "tls": "require"}[transport]
        port = self.flow_port if transport == "flow" else self.port
        return f"host=127.0.0.1 port={port} user={self.user} sslmode={mode} gssencmode=disable"

    # --- looking at it

    def entries(self):
        """What cp is given: all that a backup has."""
        return sorted(name for name in os.listdir(self.data) if name not in LEFT_OUT)

    def sizes(self):
        """(path below the data directory, size) of each file that a backup has."""
        for entry in self.entries():
            top = os.path.join(self.data, entry)
            if os.path.isfile(top):
                yield entry, os.stat(top).st_size
            for directory, _, names in os.walk(top):
                for name in names:
                    path = os.path.join(directory, name)
                    yield os.path.relpath(path, self.data), os.stat(path).st_size

    def warm(self):
        """Reads all of it, so that every contender finds it in the page cache."""
        for name, _ in self.sizes():
            with open(os.path.join(self.data, name), "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
