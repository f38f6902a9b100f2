"""pgBackRest, as a row of the bench: it reads the data directory on the server's host, without archiving of WAL, and its
repository is the target."""

import shutil
import subprocess


class PgBackRest:
    def __init__(self, cluster, scratch, repository, env):
        self.cluster, self.scratch, self.repository, self.env = cluster, scratch, repository, env
        self.is_installed = bool(shutil.which("pgbackrest", path=env["PATH"]))

    def command(self, *arguments):
        return [
            "pgbackrest", "--config=/dev/null", "--stanza=bench", f"--repo1-path={self.repository}",
            f"--log-path={self.scratch}", "--log-level-file=off", "--log-level-console=error", *arguments,
        ]  # fmt: skip

    def of_cluster(self):
        return [
            f"--pg1-path={self.cluster.data}", f"--pg1-socket-path={self.scratch}", f"--pg1-port={self.cluster.port}",
            f"--pg1-user={self.cluster.user}", "--pg1-database=postgres", f"--lock-path={self.scratch}/lock",
        ]  # fmt: skip

    def run(self, *arguments):
        return subprocess.run(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env, check=False
        )

    def make_stanza(self):
        """In a repository that is empty. Why it cannot, if it cannot: it knows some versions of the server only."""
        done = self.run(*self.of_cluster(), "stanza-create")
        if done.returncode:
            return f"pgBackRest cannot back up this server: {done.stdout.decode(errors='replace').strip()}"
        return None

    def backup(self, row):
        compress = ["--compress-type=zst", "--compress-level=1"] if row.compress else ["--compress-type=none"]
        return self.command(
            *self.of_cluster(), "--type=full", "--no-archive-check", "--start-fast", "--repo1-retention-full=1",
            f"--process-max={row.jobs}", *compress, "backup",
        )  # fmt: skip

    def verify(self):
        done = self.run("verify")
        if done.returncode:
            raise RuntimeError(f"pgbackrest verify ended with {done.returncode}\n{done.stdout.decode(errors='replace')}")
