#!/usr/bin/env python3
"""One backup by several hosts, each of which stores its part in one bucket:

    two_hosts.py NUMBER HOSTS BUCKET PREFIX [CONNECTION_STRING]

runs on each host, with NUMBER from 1 to HOSTS. Host 1 coordinates. The server knows one backup with one id, and connections
of one role that ask for its files; from which host they come is nothing to it.

Needs psycopg 3 and boto3. Left out: tablespaces, a manifest, checksums, trying again (docs/protocol.md has all).
"""
import io, json, os, struct, sys, tarfile, tempfile, time
from urllib.parse import unquote_to_bytes
import boto3, psycopg
from botocore.exceptions import ClientError

number, hosts, bucket, prefix = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4].rstrip("/")
conninfo = sys.argv[5] if len(sys.argv) > 5 else "dbname=postgres"
store = boto3.client("s3")
key = lambda name: f"{prefix}/{name}"
text = lambda path: os.fsdecode(path)

def get(name):  # None until it is there.
    try:
        return store.get_object(Bucket=bucket, Key=key(name))["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return None
        raise

def wait(name):  # However long another host takes; whoever started this ends it.
    while (content := get(name)) is None:
        time.sleep(0.2)
    return content

def connect():  # The procedures refuse transaction blocks and the extended query protocol.
    return psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor, options="-c search_path=")

def call(connection, procedure):  # All result sets of a procedure.
    cursor = connection.execute(f"CALL parallel_backup.{procedure}")
    sets = [cursor.fetchall()]
    while cursor.nextset():
        sets += [cursor.fetchall()] if cursor.description else []
    return sets

class Archive:  # A tar of this host's part: complete by itself, as every other is.
    def __init__(self, name):
        self.name, self.file = name, tempfile.TemporaryFile()
        self.tar = tarfile.open(fileobj=self.file, mode="w", format=tarfile.GNU_FORMAT)
    def add(self, path, mode, kind=tarfile.REGTYPE, content=None, size=0):
        info = tarfile.TarInfo(text(path))
        info.type, info.mode, info.size = kind, mode & 0o7777, size
        self.tar.addfile(info, content)
    def store(self):
        self.tar.close()
        self.file.seek(0)
        store.upload_fileobj(self.file, bucket, key(self.name))

def fetch(connection, paths, backup_id, archive):  # Frames: f begins a file, d is data, e ends it, v: it vanished.
    files = "CALL parallel_backup.send_files_content(files => %s::pg_catalog.text[], backup_id => %s)"
    with connection.cursor().copy(files, (paths, backup_id)) as frames:
        for frame in map(bytes, frames):
            if frame[:1] == b"f":
                path, size, mode = frame[38:-1], *struct.unpack_from("!q", frame, 17), *struct.unpack_from("!I", frame, 33)
                content = tempfile.SpooledTemporaryFile(16 << 20)
            elif frame[:1] == b"d":
                content.write(frame[1:])
            elif frame[:1] == b"e":
                content.seek(0)
                archive.add(path, mode, content=content, size=size)

def fetch_part(connection, plan):
    archive, mine = Archive(f"part.{number}.tar"), plan["parts"][number - 1]
    for path, mode in plan["directories"]:
        archive.add(unquote_to_bytes(path), mode, tarfile.DIRTYPE)
    for i in range(0, len(mine), 100):
        fetch(connection, mine[i:i + 100], plan["backup_id"], archive)
    archive.store()

connection = connect()
if not connection.execute(open(os.path.join(sys.path[0], "trusted.sql")).read()).fetchone()[0]:
    sys.exit("two_hosts.py: the procedures are not those of the extension pg_parallel_backup")
if number > 1:
    fetch_part(connection, json.loads(wait("plan.json")))
    sys.exit()

# The connection that has started the backup keeps it; files come over another.
start = call(connection, "start_backup(label => 'two_hosts.py', checkpoint => 'fast')")
if len(start[1]) > 1: sys.exit("two_hosts.py: tablespaces are more than this example can do")
listed = call(connection, "send_file_list()")[0]  # Later versions add columns.
files = sorted(((size, path) for path, kind, size, *_ in listed if kind != "d"), reverse=True)
plan = {"backup_id": start[0][0][2], "directories": [(path, mode) for path, kind, _, _, mode, *_ in listed if kind == "d"],
        "parts": [[path for _, path in files[n::hosts]] for n in range(hosts)]}
store.put_object(Bucket=bucket, Key=key("plan.json"), Body=json.dumps(plan).encode())
fetch_part(connect(), plan)
for other in range(2, hosts + 1):
    while not store.list_objects_v2(Bucket=bucket, Prefix=key(f"part.{other}.tar")).get("KeyCount"):
        connection.execute("SELECT 1")  # Whether the server is still there.
        time.sleep(0.2)
stop, last = call(connection, "stop_backup(wait => false)"), Archive("last.tar")
fetch(connection, ["pg_wal/" + name for name, *_ in stop[3]], plan["backup_id"], last)
for name, *_ in stop[3]:
    last.add(f"pg_wal/archive_status/{name}.done".encode(), 0o600, content=io.BytesIO())
for path, content in ((b"backup_label", stop[4][0][0].encode()), (b"global/pg_control", bytes.fromhex(stop[1][0][0]))):
    last.add(path, 0o600, content=io.BytesIO(content), size=len(content))
last.store()  # Without this one there is no backup.
