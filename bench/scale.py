"""How time and memory grow with the number of files, tablespaces and databases: `make bench-scale` calls it, through
tools/bench.sh, as an ordinary user.

Each shape is measured at a tenth and at the whole, pg_basebackup and this client in turn, to memory. Files and databases are
directories and files that nothing but a backup looks at: to make them by CREATE TABLE and CREATE DATABASE would take hours, and
75 GB. Tablespaces are real ones with a table each.
"""

import argparse
import os
import shutil
import subprocess
import time
from statistics import median

from data import FIRST_FILE, LOADING, Cluster, environment
from measure import Runner

SHAPES = {"files": 1_000_000, "tablespaces": 1_000, "databases": 10_000}
FILES_A_DATABASE = 10
JOBS = 4


def fill_files(cluster, count):
    cluster.fill_files(count, pages=0)


def fill_databases(cluster, count):
    """Each with what every database has at the least, and some files of one page."""
    source = os.path.join(cluster.data, "base", "5")
    for number in range(FIRST_FILE, FIRST_FILE + count):
        directory = os.path.join(cluster.data, "base", str(number))
        os.mkdir(directory, 0o700)
        for name in ("PG_VERSION", "pg_filenode.map"):
            shutil.copy(os.path.join(source, name), directory)
        for file in range(FILES_A_DATABASE - 2):
            shutil.copy(os.path.join(source, "826"), os.path.join(directory, str(FIRST_FILE + file)))


def fill_tablespaces(cluster, count):
    cluster.start(LOADING)
    places = os.path.join(cluster.home, "tablespaces")
    lines = []
    for number in range(count):
        place = os.path.join(places, str(number))
        os.makedirs(place, 0o700)
        lines.append(f"CREATE TABLESPACE t{number} LOCATION '{place}';")
        lines.append(f"CREATE TABLE t{number} TABLESPACE t{number} AS SELECT generate_series(1, 100);")
    psql = [cluster.path("psql"), *cluster.local(), "-Xq", "-v", "ON_ERROR_STOP=1", "postgres"]
    subprocess.run(psql, input="\n".join(lines).encode(), stdout=subprocess.DEVNULL, env=cluster.env, check=True)
    cluster.stop("fast")


class Scale:
    def __init__(self, options):
        self.options = options
        self.bin = os.path.join(options.install, "bin")
        self.env = environment(options.install, options.scratch)
        self.runner = Runner(self.env)
        self.target = os.path.join(options.tmpfs, "target")
        self.cluster = None

    def command(self, who, cluster):
        program = [os.path.join(self.bin, who), "-d", cluster.conninfo("socket"), "-c", "fast", "-X", "none", "--no-sync"]
        program += ["-D", self.target]
        places = os.path.join(cluster.home, "tablespaces")
        if os.path.isdir(places):
            for name in os.listdir(places):
                program += ["-T", f"{places}/{name}={self.target}.tablespaces/{name}"]
        return program + (["-j", str(JOBS)] if who == "pg_parallel_basebackup" else [])

    def backup(self, who, check):
        for directory in (self.target, f"{self.target}.tablespaces"):
            os.mkdir(directory, 0o700)
        result = self.runner.measure([(self.command(who, self.cluster), None)], self.cluster.postmaster)
        if check:
            subprocess.run(
                [os.path.join(self.bin, "pg_verifybackup"), "-n", "-q", self.target], env=self.env, check=True
            )
        subprocess.run(["rm", "-rf", self.target, f"{self.target}.tablespaces"], check=True)
        return result

    def measure(self, shape, count):
        version = subprocess.run(
            [os.path.join(self.bin, "postgres"), "--version"], stdout=subprocess.PIPE, env=self.env, check=True
        ).stdout.decode()
        home = os.path.join(self.options.data, f"scale-{shape}-{count}")
        self.cluster = Cluster(
            "scale", home, self.options.install, self.options.user, self.options.scratch, self.env
        )
        fill = {"files": fill_files, "tablespaces": fill_tablespaces, "databases": fill_databases}[shape]
        self.cluster.make({"layout": 1, "size": count, "version": version}, lambda cluster: fill(cluster, count))
        self.cluster.start_measuring(None)
        places = os.path.join(home, "tablespaces")
        files = self.cluster.files + sum(len(names) for _, _, names in os.walk(places))
        runs = {"pg_basebackup": [], "pg_parallel_basebackup": []}
        for number in range(self.options.rounds + 1):
            for who, results in runs.items():
                result = self.backup(who, number == 0)
                if number:
                    results.append(result)
        self.cluster.stop("fast")
        shutil.rmtree(home)
        return files, runs

    def main(self):
        lines = [
            f"pg_basebackup and pg_parallel_basebackup -j {JOBS}, Unix socket, to memory; {self.options.commit}; "
            f"{time.strftime('%Y-%m-%d', time.gmtime())}",
            f"{len(os.sched_getaffinity(0))} cores; medians of {self.options.rounds} rounds, most memory of all of them",
            "",
            f"{'':24}{'files':>10}{'':4}{'':24}{'wall s':>8}{'server CPU s':>14}{'client CPU s':>14}{'client MB':>11}"
            f"{'backend MB':>12}",
        ]
        for shape, most in SHAPES.items():
            if self.options.only and shape not in self.options.only:
                continue
            for count in (most // 10, most):
                print(f"==> {count} {shape}", flush=True)
                files, runs = self.measure(shape, count)
                for who, results in runs.items():
                    def of(*names, results=results):
                        return median(sum(run[name] for name in names) for run in results)

                    lines.append(
                        f"{f'{count:,} {shape}':24}{files:>10,}    {who:24}{of('wall'):>8.2f}"
                        f"{of('server_user', 'server_system'):>14.2f}{of('client_user', 'client_system'):>14.2f}"
                        f"{max(run['client_kb'] for run in results) / 1024:>11.1f}"
                        f"{max(run['backend_kb'] for run in results) / 1024:>12.1f}"
                    )
                    print(lines[-1], flush=True)
        with open(os.path.join(self.options.output, "scale.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def clean(self):
        self.runner.end()
        if self.cluster:
            self.cluster.stop("immediate")
        subprocess.run(["rm", "-rf", self.target, f"{self.target}.tablespaces"], check=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("install", "user", "data", "tmpfs", "scratch", "output", "commit"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--only", action="append", choices=list(SHAPES))
    # What tools/bench.sh gives to run.py alone.
    for name in ("size", "files", "empty"):
        parser.add_argument(f"--{name}", type=int)
    scale = Scale(parser.parse_args())
    try:
        scale.main()
    finally:
        scale.clean()


if __name__ == "__main__":
    main()
