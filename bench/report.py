"""What the measurements say: medians, ratios, what each row is limited by, the check of what was to
be reached; as a table and as a chart.

    python3 bench/report.py build/bench/results.json             the table once more
    python3 bench/report.py --svg build/bench/results.json       the chart once more
"""

import json
import sys
from html import escape
from statistics import median

GROUPS = [
    ("pgbench/socket/tmpfs", "Unix socket, to memory"),
    ("pgbench/tcp/tmpfs", "TCP loopback, to memory"),
    ("pgbench/tls/tmpfs", "TLS, to memory"),
    ("pgbench/socket/nowhere", "Unix socket, to nowhere"),
    ("pgbench/socket/cold", "Unix socket, to memory, of data that is not in the page cache"),
    ("small/flow/nowhere", "50 MB/s and 20 ms for each connection, to nowhere"),
    ("pgbench/socket/tar", "Unix socket, archives in memory"),
    ("pgbench/socket/pipe", "Unix socket, one archive through a pipe to nowhere"),
    ("pgbench/socket/tar+client-zstd:1", "Unix socket, archives in memory, compressed by the client with zstd, level 1"),
    ("pgbench/socket/tar+server-zstd:level=1", "Unix socket, archives in memory, compressed by the server with zstd, level 1"),
    ("pgbench/socket/tar+server-lz4", "Unix socket, archives in memory, compressed by the server with lz4"),
    ("files/socket/tmpfs", "{files} files of one page, Unix socket, to memory"),
    ("empty/socket/tmpfs", "{empty} empty files, Unix socket, to memory"),
    ("pgbench/socket/increment", "An increment of 5 % of the blocks, Unix socket, to memory"),
    ("pgbench/socket/increment-cold", "The same, of data that is not in the page cache"),
    ("pgbench/socket/disk", "Unix socket, to disk, without waiting for it"),
    ("pgbench/socket/synced", "Unix socket, to disk, synced"),
]

SATURATED = 0.85  # of a core, or of all of them
DISK_SATURATED = 0.8  # of the time

RULE = """\
Wall and the rest are medians, with least and most in brackets; a ratio is the median of the rounds' own
ratios to pg_basebackup of the same group. GB are 10^9 bytes of files. Server CPU is that of all server
processes, from /proc before and after. Client MB is the peak of VmHWM, backend MB that of the RssAnon of
the largest backend, without shared memory.
Limit: "disk" if its device was busy {disk:.0%} of the time; else "all cores" if server and client used {cores:.0%}
of them; else "server" or "client" if its processes or threads, one for each connection, used {cores:.0%} of a
core each; else "others" if these and the rest of the machine used {cores:.0%} of all cores; else "waits". After
it, what took most: kernel time is copying, and handing out fresh pages of memory.
""".format(disk=DISK_SATURATED, cores=SATURATED)


def spread(values):
    return {"median": median(values), "min": min(values), "max": max(values)}


def limit(row, cores):
    def used(*names):
        return median(sum(run[name] for name in names) / run["wall"] for run in row["runs"])

    parts = {
        ("server", "user code"): used("server_user"),
        ("server", "kernel"): used("server_system"),
        ("client", "user code"): used("client_user"),
        ("client", "kernel"): used("client_system"),
    }
    if row["who"] == "cp":
        parts = {("cp", what): share for (who, what), share in parts.items() if who == "client"}
    server = used("server_user", "server_system")
    client = used("client_user", "client_system")
    others = median(run["others"] + run["stolen"] for run in row["runs"])

    def most(who=None):
        of = {part: share for part, share in parts.items() if who in (None, part[0])}
        name, what = max(of, key=of.get)
        return what if who else f"{name}'s {what}"

    if median(run.get("disk_busy", 0) for run in row["runs"]) >= DISK_SATURATED:
        return "disk"
    if server + client >= SATURATED * cores:
        return f"all cores: {most()}"
    if server >= SATURATED * row["jobs"]:
        return f"server: {most('server')}"
    if client >= SATURATED * row["jobs"]:
        return f"{'cp' if row['who'] == 'cp' else 'client'}: {most('cp' if row['who'] == 'cp' else 'client')}"
    if server + client + others >= SATURATED * cores:
        return "others on the machine"
    return f"waits; most: {most()}"


def finish(results):
    """Adds to each row its summary, and the check."""
    rows = results["rows"]
    reference = {row["group"]: row for row in rows if row["title"] == "pg_basebackup"}
    cores = results["machine"]["cores"]
    for row in rows:
        size = results["data"][row["data"]]["bytes"] / 1e9
        runs = row["runs"]

        def each(name, value, row=row, runs=runs):
            row[name] = spread([value(run) for run in runs])

        each("wall", lambda run: run["wall"])
        each("mb_per_second", lambda run: size * 1000 / run["wall"])
        each("server_cpu_per_gb", lambda run: (run["server_user"] + run["server_system"]) / size)
        each("client_cpu_per_gb", lambda run: (run["client_user"] + run["client_system"]) / size)
        row["client_mb"] = max(run["client_kb"] for run in runs) / 1024
        row["backend_mb"] = max(run["backend_kb"] for run in runs) / 1024
        row["others"] = median(run["others"] + run["stolen"] for run in runs)
        row["limit"] = limit(row, cores)
        if row["group"] in reference:
            row["ratio"] = against(row, reference[row["group"]], lambda run: 1 / run["wall"])
    results["checks"] = checks(results)


def has_bytes(row):
    """Files of nothing have no CPU time a GB."""
    return row["data"] != "empty"


def against(row, other, value):
    """Round by round, because what drifts on the machine falls on both."""
    pairs = [(value(mine), value(its)) for mine, its in zip(row["runs"], other["runs"])]
    if not all(its > 0 for _, its in pairs):
        return None  # too short for the clock of /proc
    return spread([mine / its for mine, its in pairs])


def checks(results):
    rows = {row["key"]: row for row in results["rows"]}
    memory, increment = "pgbench/socket/tmpfs", "pgbench/socket/increment"

    def speed(run):
        return 1 / run["wall"]

    def server(run):
        return run["server_user"] + run["server_system"]

    def client(run):
        return run["client_user"] + run["client_system"]

    zstd = "pgbench/socket/tar+server-zstd:level=1"
    ours = [f"{memory}/ours-{jobs}" for jobs in (1, 2, 4, 8)]
    best = max((key for key in ours if key in rows), key=lambda key: rows[key]["mb_per_second"]["median"], default="")
    wanted = [
        ("wall, -j 2, Unix socket to memory", ">=", 2.5, ours[1], f"{memory}/pg_basebackup", speed),
        ("wall, -j 1, the same", ">=", 1.6, ours[0], f"{memory}/pg_basebackup", speed),
        ("throughput, -j 2, against two cp", ">=", 0.9, ours[1], f"{memory}/cp-2", speed),
        ("to nowhere, -j 2", ">=", 4, "pgbench/socket/nowhere/ours-2", "pgbench/socket/nowhere/pg_basebackup", speed),
        ("archives, -j 2", ">=", 2, "pgbench/socket/tar/ours-2", "pgbench/socket/tar/pg_basebackup", speed),
        ("archives by server-zstd:level=1, -j 2", ">=", 1.7, f"{zstd}/ours-2", f"{zstd}/pg_basebackup", speed),
        ("the same, against workers=2", ">=", 1, f"{zstd}/ours-2", f"{zstd}/pg_basebackup-workers-2", speed),
        ("client CPU of the same, against one", "<=", 0.5, f"{zstd}/ours-2", f"{zstd}/pg_basebackup", client),
        ("files of one page, -j 2", ">=", 3, "files/socket/tmpfs/ours-2", "files/socket/tmpfs/pg_basebackup", speed),
        ("an increment of 5 %, -j 2", ">=", 2, f"{increment}/ours-2", f"{increment}/pg_basebackup", speed),
        ("the same, not in the page cache", ">=", 3, f"{increment}-cold/ours-2", f"{increment}-cold/pg_basebackup", speed),
        ("server CPU of an increment of 5 %, -j 2", "<=", 0.5, f"{increment}/ours-2", f"{increment}/pg_basebackup",
         server),
        ("TLS, -j 2", ">=", 2, "pgbench/tls/tmpfs/ours-2", "pgbench/tls/tmpfs/pg_basebackup", speed),
        ("server CPU a GB, plain, default options, -j 2", "<=", 0.25, ours[1], f"{memory}/pg_basebackup", server),
        ("server CPU a GB, server verifies, CRC32C, -j 2", "<=", 0.7, f"{ours[1]}-server", f"{memory}/pg_basebackup",
         server),
        ("client CPU a GB, -j 2", "<=", 0.7, ours[1], f"{memory}/pg_basebackup", client),
        (f"-j 8 against the best -j ({best.rpartition('-')[2]})", ">=", 0.9, ours[3], best, speed),
    ]  # fmt: skip
    found = []
    for what, relation, bound, key, other, value in wanted:
        measured = against(rows[key], rows[other], value) if key in rows and other in rows else None
        met = None
        if measured:
            met = measured["median"] >= bound if relation == ">=" else measured["median"] <= bound
        found.append({"what": what, "relation": relation, "wanted": bound, "measured": measured, "met": met})
    return found


def groups(results):
    for group, title in GROUPS:
        rows = [row for row in results["rows"] if row["group"] == group]
        if rows:
            count = {name: f"{round(data['files'], -3):,}" for name, data in results["data"].items()}
            yield title.format(**{"files": "", "empty": "", **count}), rows


def subject(results):
    machine, data = results["machine"], results["data"]
    what = []
    if "pgbench" in data:
        what.append(f"{data['pgbench']['bytes'] / 1e9:.2f} GB of pgbench and words in {data['pgbench']['files']} files")
    if "small" in data:
        what.append(f"{data['small']['bytes'] / 1e9:.2f} GB of the same")
    if "files" in data:
        what.append(f"{data['files']['files']} files, most of one page")
    if "empty" in data:
        what.append(f"{data['empty']['files']} files, most of them empty")
    return [
        f"{results['postgres']}; this project at {results['commit']}; {results['date']}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, Linux {machine['kernel']}, "
        f"{machine['file_system']}",
        f"{'; '.join(what)}; {results['rounds']} rounds after one to warm up",
    ]


def table(results):
    lines = ["", *subject(results), ""]
    lines.append(
        f"{'':38}{'wall s':>22}{'MB/s':>8}{'ratio':>20}{'server':>8}{'client':>8}{'client':>8}{'backend':>9}  limit"
    )
    lines.append(f"{'':38}{'':>22}{'':>8}{'':>20}{'s/GB':>8}{'s/GB':>8}{'MB':>8}{'MB':>9}")
    for title, rows in groups(results):
        lines.append(title)
        for row in rows:
            wall, ratio = row["wall"], row.get("ratio")
            its = f"{ratio['median']:.2f} [{ratio['min']:.2f}-{ratio['max']:.2f}]" if ratio else "-"
            copied = row["who"] == "cp"
            server = "-" if copied or not has_bytes(row) else f"{row['server_cpu_per_gb']['median']:.2f}"
            client = f"{row['client_cpu_per_gb']['median']:.2f}" if has_bytes(row) else "-"
            memory = ("-", "-") if copied else (f"{row['client_mb']:.1f}", f"{row['backend_mb']:.1f}")
            spread_of = f"{wall['median']:.2f} [{wall['min']:.2f}-{wall['max']:.2f}]"
            lines.append(
                f"  {row['title']:36}{spread_of:>22}{row['mb_per_second']['median']:>8.0f}{its:>20}{server:>8}"
                f"{client:>8}{memory[0]:>8}{memory[1]:>9}  {row['limit']}"
            )
    for key, why in results["skipped"].items():
        lines.append(f"left out: {key}: {why}")
    lines += ["", *RULE.splitlines(), "", f"{'To reach':52}{'wanted':>9}{'measured':>21}"]
    for check in results["checks"]:
        measured, met = check["measured"], check["met"]
        its = f"{measured['median']:.2f} [{measured['min']:.2f}-{measured['max']:.2f}]" if measured else "-"
        verdict = {True: "met", False: "missed", None: "not measured"}[met]
        bound = f"{check['relation']} {check['wanted']}"
        lines.append(f"  {check['what']:50}{bound:>9}{its:>21}  {verdict}")
    cores = results["machine"]["cores"]
    others = max((row["others"] for row in results["rows"]), default=0)
    if others > cores / 20:
        lines += ["", f"The machine was not quiet: up to {others:.2f} of {cores} cores went to something else, or to"]
        lines += ["other machines of the host. Do not trust these numbers."]
    return "\n".join(lines) + "\n"


# --- the chart ------------------------------------------------------------------------------

STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2328}
.back{fill:#ffffff;stroke:#d1d9e0}.title{font-size:17px;font-weight:600}.group{font-weight:600}
.soft{fill:#59636e;font-size:12px}.ours{fill:#1f6feb}.base{fill:#8c959f}.cp{fill:#b08a3e}
.server{fill:#cf5b2e}.client{fill:#3d8f75}.line{stroke:#1f2328;stroke-width:1.2}.grid{stroke:#d1d9e0}
.one{stroke:#59636e;stroke-dasharray:3 3}
@media (prefers-color-scheme:dark){text{fill:#f0f6fc}.back{fill:#0d1117;stroke:#3d444d}.soft{fill:#9198a1}
.ours{fill:#4493f8}.base{fill:#6e7681}.cp{fill:#9e7a33}.server{fill:#db6d3e}.client{fill:#3fa07f}
.line{stroke:#f0f6fc}.grid{stroke:#3d444d}.one{stroke:#9198a1}}
"""

WIDTH, LEFT, BARS, CPU_LEFT, CPU_BARS, STEP = 1000, 255, 300, 700, 220, 21


def step_of(most):
    """A round number, of which there are at most eight up to `most`."""
    return next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 1000) if most / step <= 8)


def svg(results):
    shown = list(groups(results))
    rows = [row for _, rows in shown for row in rows]
    most = max((row["ratio"]["max"] for row in rows if row.get("ratio")), default=1) * 1.02
    cpu_of = [row["server_cpu_per_gb"]["median"] + row["client_cpu_per_gb"]["median"] for row in rows if has_bytes(row)]
    most_cpu = max(cpu_of, default=1) * 1.02
    height = 118 + sum(34 + STEP * len(rows) for _, rows in shown) + 52
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="pg_parallel_basebackup against pg_basebackup and cp">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
    ]

    def text(x, y, words, kind="", anchor="start"):
        out.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def bar(x, y, width, kind):
        out.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="14" rx="2"/>')

    def line(x1, y1, x2, y2, kind):
        out.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def scale(value):
        return LEFT + value / most * BARS

    def cpu_scale(value):
        return CPU_LEFT + value / most_cpu * CPU_BARS

    text(20, 32, "A base backup by pg_parallel_basebackup and by others", "title")
    data = sum(data["bytes"] for data in results["data"].values()) / 1e9
    machine = results["machine"]
    text(20, 53, f"{data:.1f} GB, from page cache unless it says otherwise, {machine['cores']} cores, medians of {results['rounds']} rounds; "
         "thin lines: from least to most", "soft")  # fmt: skip
    text(LEFT, 84, "times as fast as pg_basebackup", "group")
    text(LEFT + BARS + 98, 84, "GB/s", "soft", "end")
    text(CPU_LEFT, 84, "CPU seconds a GB", "group")
    x = CPU_LEFT + 140
    for kind in ("server", "client"):
        bar(x, 73, 12, kind)
        text(x + 17, 84, kind, "soft")
        x += 72
    top, bottom = 112, height - 52
    for origin, extent, place in ((most, step_of(most), scale), (most_cpu, step_of(most_cpu), cpu_scale)):
        tick = 0
        while tick * extent <= origin:
            at = place(tick * extent)
            one = place is scale and tick * extent == 1
            line(at, top - 10, at, bottom, "one" if one else "grid")
            text(at, top - 14, f"{tick * extent:g}", "soft", "middle")
            tick += 1
    y = top
    for title, group_rows in shown:
        y += 22
        # Its own ground, so that no line of the grid goes through the words.
        out.append(f'<rect class="back" style="stroke:none" x="4" y="{y - 16}" width="{WIDTH - 8}" height="21"/>')
        text(20, y, title, "group")
        y += 12
        for row in group_rows:
            kind = {"ours": "ours", "cp": "cp", "pgbackrest": "cp"}.get(row["who"], "base")
            text(LEFT - 8, y + 11, row["title"].replace(", server verifies, CRC32C", ", server verifies"), "", "end")
            ratio = row.get("ratio")
            if ratio:
                bar(LEFT, y, scale(ratio["median"]) - LEFT, kind)
                if row["who"] != "pg_basebackup":
                    line(scale(ratio["min"]), y + 7, scale(ratio["max"]), y + 7, "line")
                    for end in (ratio["min"], ratio["max"]):
                        line(scale(end), y + 4, scale(end), y + 10, "line")
                # In a column of their own: beside the bars they would stand on the grid.
                text(LEFT + BARS + 52, y + 11, f"{ratio['median']:.2f}×", "", "end")
            text(LEFT + BARS + 98, y + 11, f"{row['mb_per_second']['median'] / 1000:.2f}", "soft", "end")
            if not has_bytes(row):
                y += STEP
                continue
            server, client = row["server_cpu_per_gb"]["median"], row["client_cpu_per_gb"]["median"]
            if row["who"] != "cp":
                bar(CPU_LEFT, y, cpu_scale(server) - CPU_LEFT, "server")
            else:
                server = 0
            bar(cpu_scale(server), y, cpu_scale(client) - CPU_LEFT, "client")
            text(WIDTH - 20, y + 11, f"{server + client:.2f}", "soft", "end")
            y += STEP
    for number, words in enumerate(subject(results)[:2]):
        text(20, height - 30 + 17 * number, words, "soft")
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    arguments = sys.argv[1:]
    as_svg = "--svg" in arguments
    with open([name for name in arguments if name != "--svg"][0], encoding="utf-8") as file:
        results = json.load(file)
    finish(results)
    print(svg(results) if as_svg else table(results), end="")


if __name__ == "__main__":
    main()
