"""The bench: pg_parallel_basebackup against pg_basebackup, cp, and pgBackRest where that is installed. `make bench` calls it, through
tools/bench.sh, as an ordinary user.

In each round every row is measured once, one after the other, so that what drifts on the machine
(the cost of a fresh page of memory above all) falls on all of them. The first round is not
counted: it warms up, and its copies are verified by pg_verifybackup.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from data import Cluster, environment
from measure import Runner
from pgbackrest import PgBackRest
from rows import rows
import report

FREE = 512  # MB that are to stay free
SMALL = 600  # MB, for what takes its time


def say(text):
    print(f"==> {text}", flush=True)


def note(text):
    print(f"    {text}", flush=True)


def free_mb(directory):
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize // 1_000_000


def available_mb():
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 1_000_000
    return 0


def filesystem(directory):
    done = subprocess.run(["df", "--output=fstype", directory], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().split()[-1]


class Bench:
    def __init__(self, options):
        self.options = options
        self.bin = os.path.join(options.install, "bin")
        self.env = environment(options.install, options.scratch)
        self.user = options.user
        self.small = min(SMALL, options.size)
        self.clusters = {
            name: Cluster(name, os.path.join(options.data, f"{name}-{size}"), options.install, self.user,
                          options.scratch, self.env)
            for name, size in (
                ("pgbench", options.size), ("small", self.small), ("files", options.files), ("empty", options.empty)
            )
        }  # fmt: skip
        self.runner = Runner(self.env)
        self.targets = {
            "tmpfs": os.path.join(options.tmpfs, "target"),
            "tar": os.path.join(options.tmpfs, "target"),
            "increment": os.path.join(options.tmpfs, "target"),
            "increment-cold": os.path.join(options.tmpfs, "target"),
            "cold": os.path.join(options.tmpfs, "target"),
            "disk": os.path.join(options.data, "target"),
            "synced": os.path.join(options.data, "target"),
        }
        self.results = {}
        self.skipped = {}
        self.certificate = None
        self.pgbackrest = PgBackRest(self.clusters["pgbench"], options.scratch, self.targets["tmpfs"], self.env)
        self.manifest = os.path.join(options.scratch, "full_manifest")

    # --- before the first round

    def check_room(self):
        size, files = self.options.size, self.options.files * 8192 // 1_000_000
        largest = max(size, files)
        if filesystem(self.options.data) == "tmpfs":
            raise RuntimeError(f"{self.options.data} is in memory: give a directory on a disk")
        to_make = sum(
            what for name, what in (("pgbench", size), ("small", self.small), ("files", files))
            if not os.path.exists(os.path.join(self.clusters[name].home, "made.json"))
        )  # fmt: skip
        for directory, needed in ((self.options.data, to_make + size), (self.options.tmpfs, largest)):
            needed = needed * 11 // 10 + FREE
            if free_mb(directory) < needed:
                raise RuntimeError(
                    f"not enough space in {directory}: needed {needed} MB, free {free_mb(directory)} MB"
                )
        needed = 2 * largest * 11 // 10 + FREE
        if available_mb() < needed:
            raise RuntimeError(
                f"not enough memory: data and a copy of it in memory need {needed} MB, {available_mb()} MB "
                f"are available; choose a smaller SIZE"
            )

    def make_data(self):
        version = self.output("postgres", "--version")
        used = {row.data for row in self.results}
        for name, size, what, fill in (
            ("pgbench", self.options.size, f"{self.options.size} MB by pgbench, a third of it words",
             lambda cluster: cluster.fill_pgbench(self.options.size)),
            ("small", self.small, f"{self.small} MB of the same",
             lambda cluster: cluster.fill_pgbench(self.small)),
            ("files", self.options.files, f"{self.options.files} files of one page",
             lambda cluster: cluster.fill_files(self.options.files)),
            ("empty", self.options.empty, f"{self.options.empty} files of nothing",
             lambda cluster: cluster.fill_files(self.options.empty, pages=0)),
        ):  # fmt: skip
            cluster = self.clusters[name]
            if name not in used:
                continue
            wanted = {"layout": 1, "size": size, "version": version}
            if cluster.made(wanted):
                note(f"{what}: made by an earlier run")
                continue
            say(f"Making {what}")
            start = time.monotonic()
            cluster.make(wanted, fill)
            note(f"done in {time.monotonic() - start:.1f} s")

    def make_certificate(self):
        stem = os.path.join(self.options.scratch, "tls")
        try:
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                 "-keyout", f"{stem}.key", "-out", f"{stem}.crt"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        except (FileNotFoundError, subprocess.CalledProcessError):
            return None
        os.chmod(f"{stem}.key", 0o600)
        return stem

    def output(self, program, *arguments):
        command = [os.path.join(self.bin, program), *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, env=self.env, check=True).stdout.decode().strip()

    @property
    def major(self):
        return int(self.output("pg_config", "--version").split()[1].split(".")[0])

    def choose_rows(self):
        """The rows that the client and the machine can do; the others are named, with the reason."""
        help_text = self.output("pg_parallel_basebackup", "--help")
        for row in rows(self.options.quick):
            if self.options.only and not any(part in row.key for part in self.options.only):
                continue
            if row.transport == "tls" and not self.certificate:
                self.skipped[row.key] = "openssl is not installed"
            elif row.who == "ours" and row.target == "nowhere" and "--discard" not in help_text:
                self.skipped[row.key] = "the client has no --discard"
            elif row.who == "ours" and row.target in ("tar", "pipe") and "tar" not in help_text:
                self.skipped[row.key] = "the client has no archives"
            elif row.who == "pgbackrest" and not self.pgbackrest.is_installed:
                self.skipped[row.key] = "pgbackrest is not installed"
            elif row.is_increment and ("--incremental" not in help_text or self.major < 17):
                self.skipped[row.key] = "there are no incremental backups before 17"
            elif row.verify and "--verify" not in help_text:
                self.skipped[row.key] = "the client has no --verify"
            else:
                self.results[row] = []
        for key, why in self.skipped.items():
            note(f"left out: {key}: {why}")

    def leave_out_pgbackrest(self):
        """Where it is not installed, or cannot back up this version of the server."""
        if not any(row.who == "pgbackrest" for row in self.results):
            return
        os.mkdir(self.pgbackrest.repository, 0o700)
        why = self.pgbackrest.make_stanza()
        self.remove(self.pgbackrest.repository)
        if why:
            for row in [row for row in self.results if row.who == "pgbackrest"]:
                del self.results[row]
                self.skipped[row.key] = why
                note(f"left out: {row.key}: {why}")

    def prepare_increments(self):
        """A full backup, of which the manifest is kept, and some changes since."""
        if not any(row.is_increment for row in self.results):
            return
        say("Changing some blocks, for increments")
        cluster, target = self.clusters["pgbench"], self.targets["tmpfs"]
        self.output(
            "pg_parallel_basebackup", "-d", cluster.conninfo("socket"), "-c", "fast", "-X", "none", "--no-sync", "-D", target
        )
        shutil.copy(os.path.join(target, "backup_manifest"), self.manifest)
        self.remove(target)
        cluster.change()

    # --- a row

    def commands(self, row, target):
        cluster = self.clusters[row.data]
        if row.who == "cp":
            if row.jobs == 1:
                sources = [os.path.join(cluster.data, name) for name in cluster.entries()]
                return [(["cp", "-a", "-t", target, *sources], None)]
            return [(["sh", "-c", script], None) for script in self.two_cp(cluster, target)]
        if row.who == "pgbackrest":
            return [(self.pgbackrest.backup(row), None)]
        connection = ["-d", cluster.conninfo(row.transport), "-c", "fast"]
        sync = [] if row.target == "synced" else ["--no-sync"]
        if row.is_increment:
            connection += ["-i", self.manifest]
        if row.who == "pg_basebackup":
            program = [os.path.join(self.bin, "pg_basebackup"), *connection, "-X", "none"]
            if row.target == "nowhere":
                return [([*program, *sync, "-Ft", "-D", "-"], subprocess.DEVNULL)]
            if row.target in ("tar", "pipe"):
                return [self.archive([*program, *sync], row, target)]
            return [([*program, *sync, "-Fp", "-D", target], None)]
        program = [os.path.join(self.bin, "pg_parallel_basebackup"), *connection, "-j", str(row.jobs)]
        if row.verify == "server":
            program += ["--verify=server", "--manifest-checksums=CRC32C"]
        elif row.verify == "checksums":
            program += ["--no-verify-checksums"]
        if row.lease is not None:
            program += ["--lease", str(row.lease)]
        if row.target == "nowhere":
            return [([*program, "--discard"], None)]
        if row.target in ("tar", "pipe"):
            return [self.archive([*program, *sync, "-X", "none"], row, target)]
        return [([*program, *sync, "-X", "none", "-D", target], None)]

    @staticmethod
    def archive(program, row, target):
        workers = f",workers={row.workers}" if row.workers else ""
        compress = ["-Z", row.compress + workers] if row.compress else []
        if row.target == "pipe":
            return ([*program, "-Ft", *compress, "-D", "-"], subprocess.DEVNULL)
        return ([*program, "-Ft", *compress, "-D", target], None)

    def two_cp(self, cluster, target):
        """Two halves of equal size. The files of large directories are dealt out, largest first; small
        directories go as a whole, with --parents, which would cost a third more on many files."""
        limit = cluster.bytes // 20
        units = {}
        for name, size in cluster.sizes():
            parts = name.split("/")
            unit = "/".join(parts[:2]) if parts[0] == "base" else parts[0]
            units.setdefault(unit, []).append((size, name))
        pieces = []
        for unit, files in units.items():
            total = sum(size for size, _ in files)
            if total > limit and len(files) > 1:
                pieces += [(size, name, unit) for size, name in files]
            else:
                pieces.append((total, unit, None))
        halves, loads = [{}, {}], [0, 0]
        for size, name, unit in sorted(pieces, key=lambda piece: (-piece[0], piece[1])):
            lighter = loads.index(min(loads))
            loads[lighter] += size
            halves[lighter].setdefault(unit, []).append(name)
        for number, half in enumerate(halves):
            # Both make the directories: "cp --parents" fails where the other has just made one.
            lines = [f"cd '{cluster.data}'", f"find . -type d -printf '{target}/%P\\0' | xargs -0 mkdir -p"]
            for place, (unit, names) in enumerate(half.items()):
                path = os.path.join(self.options.scratch, f"cp-{cluster.name}-{number}-{place}")
                with open(path, "w", encoding="utf-8") as file:
                    file.write("\0".join(names))
                if unit:
                    lines.append(f"mkdir -p '{target}/{unit}'")
                    lines.append(f"xargs -0 -a '{path}' cp -a -t '{target}/{unit}'")
                else:
                    lines.append(f"xargs -0 -a '{path}' cp -a --parents -t '{target}'")
            yield " && ".join(lines)

    def run(self, row, check):
        cluster = self.clusters[row.data]
        target = self.targets.get(row.target)
        on_disk = row.target in ("disk", "synced")
        if target:
            os.mkdir(target, 0o700)
        commands = self.commands(row, target)
        if row.who == "pgbackrest":
            self.pgbackrest.make_stanza()
        if row.target.endswith("cold"):
            cluster.chill()
        if on_disk:
            subprocess.run(["sync", "-f", target], check=True)
        result = self.runner.measure(
            commands, None if row.who == "cp" else cluster.postmaster, target if on_disk else None
        )
        if target:
            if check:
                self.check_copy(row, cluster, target)
            self.remove(target)
        return result

    def check_copy(self, row, cluster, target):
        size = sum(
            os.lstat(os.path.join(directory, name)).st_size
            for directory, _, names in os.walk(target) for name in names if name != "backup_manifest"
        )  # fmt: skip
        # Of an increment there is no number to go by but that it is much less.
        is_off = size > cluster.bytes / 5 if row.is_increment else abs(size - cluster.bytes) > cluster.bytes / 50
        if not row.compress and is_off:
            raise RuntimeError(f"{row.key}: {size} bytes were copied of {cluster.bytes}")
        if row.who == "pgbackrest":
            self.pgbackrest.verify()
        elif row.who != "cp":
            self.verify(target)

    def verify(self, target):
        """By pg_verifybackup, which reads archives from 18 on."""
        archives = [name for name in os.listdir(target) if name.startswith("base.tar")]
        if not archives or self.major >= 18:
            self.output("pg_verifybackup", "-n", "-q", target)
            return
        place = f"{target}.extracted"
        os.mkdir(place, 0o700)
        subprocess.run(["tar", "-xf", os.path.join(target, archives[0]), "-C", place], check=True)
        self.output("pg_verifybackup", "-n", "-q", "-m", os.path.join(target, "backup_manifest"), place)
        self.remove(place)

    @staticmethod
    def remove(target):
        subprocess.run(["rm", "-rf", target], check=False)

    # --- all of them

    def main(self):
        options = self.options
        self.check_room()
        self.certificate = self.make_certificate()
        self.choose_rows()
        if not self.results:
            raise RuntimeError("no row is left to be measured")
        self.make_data()
        used = [self.clusters[name] for name in sorted({row.data for row in self.results})]
        for cluster in used:
            cluster.start_measuring(self.certificate, self.major >= 17)
            self.env["PGPASSFILE"] = os.path.join(options.scratch, "passwords")
            with open(self.env["PGPASSFILE"], "a", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(f"127.0.0.1:{cluster.port}:*:*:{cluster.password}\n")
                if any(row.transport == "flow" and row.data == cluster.name for row in self.results):
                    file.write(f"127.0.0.1:{cluster.start_flow()}:*:*:{cluster.password}\n")
        self.leave_out_pgbackrest()
        self.prepare_increments()
        for number in range(options.rounds + 1):
            what = f"Round {number} of {options.rounds}" if number else "Warming up, and verifying the copies"
            say(f"{what}: {len(self.results)} rows")
            start = time.monotonic()
            for cluster in used:
                cluster.warm()
            for row, runs in self.results.items():
                result = self.run(row, check=number == 0)
                if number:
                    runs.append(result)
            took = time.monotonic() - start
            note(f"done in {took:.0f} s" + ("" if number else f"; all rounds: about {took * options.rounds / 60:.0f} min"))
        return self.write()

    def write(self):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
        results = {
            "version": 1,
            "machine": {
                "cpu": cpu,
                "cores": len(os.sched_getaffinity(0)),
                "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
                "kernel": os.uname().release,
                "file_system": filesystem(self.options.data),
            },
            "postgres": self.output("postgres", "--version"),
            "commit": self.options.commit,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "rounds": self.options.rounds,
            "quick": self.options.quick,
            "data": {
                name: {"bytes": cluster.bytes, "files": cluster.files}
                for name, cluster in self.clusters.items() if cluster.files
            },
            "skipped": self.skipped,
            "rows": [
                {"key": row.key, "group": row.group, "title": row.title, "data": row.data, "transport": row.transport,
                 "target": row.target, "who": row.who, "jobs": row.jobs, "runs": runs}
                for row, runs in self.results.items()
            ],
        }  # fmt: skip
        report.finish(results)
        with open(os.path.join(self.options.output, "results.json"), "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
        with open(os.path.join(self.options.output, "results.svg"), "w", encoding="utf-8") as file:
            file.write(report.svg(results))
        text = report.table(results)
        with open(os.path.join(self.options.output, "results.txt"), "w", encoding="utf-8") as file:
            file.write(text)
        print(text, flush=True)

    def clean(self):
        self.runner.end()
        for cluster in self.clusters.values():
            cluster.stop("immediate")
        for target in set(self.targets.values()):
            self.remove(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", required=True, help="the server, its extension and the client")
    parser.add_argument("--user", required=True, help="who runs this")
    parser.add_argument("--data", required=True, help="where the data sets are kept, and the target on disk")
    parser.add_argument("--tmpfs", required=True, help="directory for the target in memory, removed by the caller")
    parser.add_argument("--scratch", required=True, help="directory for sockets and logs, removed by the caller")
    parser.add_argument("--output", required=True, help="where the results go")
    parser.add_argument("--size", type=int, required=True, help="of the pgbench cluster, in MB")
    parser.add_argument("--files", type=int, required=True, help="of one page in the other cluster")
    parser.add_argument("--empty", type=int, required=True, help="files of nothing in a third")
    parser.add_argument("--rounds", type=int, required=True, help="beside the one that warms up")
    parser.add_argument("--quick", action="store_true", help="without the rows that wait for the disk")
    parser.add_argument("--commit", default="unknown", help="what is measured, for the results")
    parser.add_argument("--only", action="append", help="rows with this in their key; may be repeated")
    options = parser.parse_args()

    def interrupted(number, _frame):
        # Once: cleaning up is not to be interrupted.
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        sys.exit(128 + number)

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, interrupted)

    os.makedirs(options.data, mode=0o700, exist_ok=True)
    bench = Bench(options)
    try:
        bench.main()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    finally:
        for cluster in bench.clusters.values():
            if os.path.exists(cluster.log):
                shutil.copy(cluster.log, os.path.join(options.output, f"{cluster.name}.log"))
        bench.clean()


if __name__ == "__main__":
    main()
