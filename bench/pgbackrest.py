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
            "pgbackrest", "--config=/dev/null", "--stanza=bench", f"--pg1-path={self.cluster.data}",
            f"--pg1-socket-path={self.scratch}", f"--pg1-port={self.cluster.port}", f"--pg1-user={self.cluster.user}",
            "--pg1-database=postgres", f"--repo1-path={self.repository}", f"--lock-path={self.scratch}/lock",
            f"--log-path={self.scratch}", "--log-level-file=off", "--log-level-console=error",
            *arguments,
        ]  # fmt: skip

    def make_stanza(self):
        """In a repository that is empty. Why it cannot, if it cannot: it knows some versions of the server only."""
        done = subprocess.run(
            self.command("stanza-create"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env, check=False
        )
        if done.returncode:
            return f"pgBackRest cannot back up this server: {done.stdout.decode(errors='replace').strip()}"
        return None

    def backup(self, row):
        compress = ["--compress-type=zst", "--compress-level=1"] if row.compress else ["--compress-type=none"]
        return self.command(
            "--type=full", "--no-archive-check", "--start-fast", "--repo1-retention-full=1", f"--process-max={row.jobs}",
            *compress, "backup",
        )

    def verify(self):
        done = subprocess.run(
            self.command("verify"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env, check=False
        )
        if done.returncode:
            raise RuntimeError(f"pgbackrest verify ended with {done.returncode}\n{done.stdout.decode(errors='replace')}")
