"""Runs a command and measures it: time, CPU and memory, on the client's side and the server's.

Linux only: the numbers are read from /proc. What is run, and what is made of the numbers, is for
run.py and report.py.
"""

import os
import signal
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
POLL = 0.05  # seconds between two looks at memory: a thousandth of a core


def stat_fields(pid):
    """The fields of /proc/PID/stat from the third on, or None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def status_kb(pid, name):
    """A line of /proc/PID/status in kB, 0 when the process is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        return {int(child) for child in file.read().split()}


def server_cpu(postmaster):
    """CPU of all of the server's processes so far, (user, system) in seconds: the postmaster, the
    children that it has waited for, and those that run. So checkpoints and WAL writing count, and
    backends that have ended are not lost."""
    user = system = 0
    for pid in [postmaster, *children(postmaster)]:
        fields = stat_fields(pid)
        if fields:
            user += int(fields[11])
            system += int(fields[12])
            if pid == postmaster:
                user += int(fields[13])
                system += int(fields[14])
    return user / TICK, system / TICK


def machine_cpu():
    """(busy, stolen) seconds of all cores so far."""
    with open("/proc/stat", "rb") as file:
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq) / TICK, steal / TICK


def device_stat(directory):
    """(busy seconds, bytes written) of the device that a directory is on, None if it has none."""
    device = os.stat(directory).st_dev
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat", "rb") as file:
            fields = file.read().split()
    except FileNotFoundError:
        return None
    return int(fields[9]) / 1000, int(fields[6]) * 512


class Watch(threading.Thread):
    """Looks at the memory of the clients, and of the server's processes that were not there before."""

    def __init__(self, clients, postmaster, before):
        super().__init__(daemon=True)
        self.clients, self.postmaster, self.before = clients, postmaster, before
        self.client_kb = self.backend_kb = 0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(POLL if self.client_kb else 0.005):
            # Not wait4's ru_maxrss: in a child that has just been made it begins with the memory
            # of the program that made it, this one. VmHWM begins with exec.
            self.client_kb = max(self.client_kb, sum(status_kb(pid, b"VmHWM:") for pid in self.clients))
            if self.postmaster:
                for pid in children(self.postmaster) - self.before:
                    self.backend_kb = max(self.backend_kb, status_kb(pid, b"RssAnon:"))


class Runner:
    """Runs one thing at a time, and ends it when the bench is interrupted."""

    def __init__(self, env):
        self.env = env
        self.running = []

    def measure(self, commands, postmaster=None, device=None):
        """Runs commands side by side, each a (argv, stdout or None), until all have ended."""
        before = children(postmaster) if postmaster else set()
        server = server_cpu(postmaster) if postmaster else (0, 0)
        disk = device_stat(device) if device else None
        busy, stolen = machine_cpu()
        own = time.process_time()
        start = time.monotonic()
        for argv, stdout in commands:
            self.running.append(
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout or subprocess.PIPE,
                    stderr=subprocess.STDOUT if stdout is None else subprocess.PIPE,
                    env=self.env,
                )
            )
        watch = Watch([process.pid for process in self.running], postmaster, before)
        watch.start()
        user = system = 0
        failed = None
        # Their output is a few lines: it fits the pipe, and is read at the end.
        for (argv, stdout), process in zip(commands, list(self.running)):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            user += usage.ru_utime
            system += usage.ru_stime
            if process.returncode:
                pipe = process.stdout if stdout is None else process.stderr
                failed = failed or (argv, process.returncode, pipe.read().decode(errors="replace"))
        wall = time.monotonic() - start
        watch.ended.set()
        watch.join()
        for process in self.running:
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        self.running.clear()
        if failed:
            raise RuntimeError(f"{failed[0][0]} ended with {failed[1]}\n{failed[2]}")
        # A backend's CPU counts once the postmaster has waited for it.
        deadline = time.monotonic() + 10
        while postmaster and children(postmaster) - before and time.monotonic() < deadline:
            time.sleep(0.005)
        if postmaster:
            now = server_cpu(postmaster)
            server = (now[0] - server[0], now[1] - server[1])
        busy_now, stolen_now = machine_cpu()
        own = time.process_time() - own
        result = {
            "wall": wall,
            "server_user": server[0],
            "server_system": server[1],
            "client_user": user,
            "client_system": system,
            "client_kb": watch.client_kb,
            "backend_kb": watch.backend_kb,
            # What else ran on the machine meanwhile, in cores, and what the hypervisor took.
            "others": max(0, busy_now - busy - sum(server) - user - system - own) / wall,
            "stolen": (stolen_now - stolen) / wall,
        }
        if disk:
            now = device_stat(device)
            result["disk_busy"] = (now[0] - disk[0]) / wall
            result["disk_written"] = now[1] - disk[1]
        return result

    def end(self):
        for process in self.running:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            if process.returncode is None:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.running.clear()
