"""A network as clouds have it between two hosts: each connection has so many bytes a second, and each byte takes its time, both
ways.

    python3 bench/flow.py PORT      forwards to 127.0.0.1:PORT, and prints the port where it listens
"""

import socket
import sys
import threading
import time
from collections import deque

RATE = 50_000_000  # bytes a second, of each connection, each way
LATENCY = 0.020  # seconds, each way
CHUNK = 64 << 10
# What may be on its way: what the latency holds at this rate, and as much in buffers on the way.
UNDER_WAY = int(2 * RATE * LATENCY) + CHUNK


class Way:
    """One direction of a connection."""

    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.chunks = deque()
        self.bytes = 0
        self.changed = threading.Condition()

    def start(self):
        threading.Thread(target=self.read, daemon=True).start()
        threading.Thread(target=self.write, daemon=True).start()

    def read(self):
        while True:
            try:
                chunk = self.source.recv(CHUNK)
            except OSError:
                chunk = b""
            with self.changed:
                self.chunks.append((time.monotonic() + LATENCY, chunk))
                self.bytes += len(chunk)
                self.changed.notify()
                if not chunk:
                    return
                while self.bytes > UNDER_WAY:
                    self.changed.wait()

    def write(self):
        free_at = 0.0
        while True:
            with self.changed:
                while not self.chunks:
                    self.changed.wait()
                there_at, chunk = self.chunks.popleft()
            if not chunk:
                break
            # The line is free again when the bytes before have gone over it.
            free_at = max(free_at, there_at) + len(chunk) / RATE
            pause = free_at - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            try:
                self.sink.sendall(chunk)
            except OSError:
                break
            with self.changed:
                self.bytes -= len(chunk)
                self.changed.notify()
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def main():
    target = ("127.0.0.1", int(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Way(client, server).start()
            Way(server, client).start()


main()
