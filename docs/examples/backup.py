#!/usr/bin/env python3
"""A base backup by way of the SQL procedures: backup.py DIRECTORY [CONNECTION_STRING [JOBS]]

Needs psycopg 3. Left out: tablespaces, a manifest, checksums, trying again (docs/protocol.md has all).
"""
import os, struct, sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes
import psycopg

target, conninfo, jobs = (sys.argv[1:] + ["dbname=postgres", "4"][len(sys.argv) - 2:])[:3]
at = lambda path: os.path.join(os.fsencode(target), path)

def connect():  # The procedures refuse transaction blocks and the extended query protocol.
    return psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor, options="-c search_path=")

def call(connection, procedure):  # All result sets of a procedure.
    cursor = connection.execute(f"CALL parallel_backup.{procedure}")
    sets = [cursor.fetchall()]
    while cursor.nextset():
        sets += [cursor.fetchall()] if cursor.description else []
    return sets

def fetch(connection, paths, backup_id):  # Frames: f begins a file, d is data, e ends it, v: it vanished.
    files = "CALL parallel_backup.send_files_content(files => %s::pg_catalog.text[], backup_id => %s)"
    with connection.cursor().copy(files, (paths, backup_id)) as frames:
        for frame in map(bytes, frames):
            if frame[:1] == b"f":
                file = open(at(frame[38:-1]), "wb")
                os.fchmod(file.fileno(), struct.unpack_from("!I", frame, 33)[0])
            elif frame[:1] == b"d":
                file.write(frame[1:])
            elif frame[:1] == b"e":
                file.close()

coordinator = connect()
if not coordinator.execute(open(os.path.join(sys.path[0], "trusted.sql")).read()).fetchone()[0]:
    sys.exit("backup.py: the procedures are not those of the extension pg_parallel_backup")
start = call(coordinator, "start_backup(label => 'backup.py', checkpoint => 'fast')")
backup_id = start[0][0][2]
if len(start[1]) > 1: sys.exit("backup.py: tablespaces are more than this example can do")
os.makedirs(target, 0o700)
files = []
for path, kind, size, mtime, mode, *_ in call(coordinator, "send_file_list()")[0]:  # Later versions add columns.
    if kind == "d":
        os.makedirs(at(unquote_to_bytes(path)), mode, exist_ok=True)
    else:
        files.append(path)
workers = [connect() for _ in range(int(jobs))]
batches = [[files[i:i + 100] for i in range(100 * n, len(files), 100 * len(workers))] for n in range(len(workers))]
with ThreadPoolExecutor(len(workers)) as pool:
    list(pool.map(lambda worker, mine: [fetch(worker, batch, backup_id) for batch in mine], workers, batches))
stop = call(coordinator, "stop_backup(wait => false)")
fetch(coordinator, ["pg_wal/" + name for name, *_ in stop[3]], backup_id)
for name, *_ in stop[3]:
    open(at(f"pg_wal/archive_status/{name}.done".encode()), "wb").close()
for path, content in ((b"backup_label", stop[4][0][0].encode()), (b"global/pg_control", bytes.fromhex(stop[1][0][0]))):
    with open(at(path), "wb") as file:
        file.write(content)
