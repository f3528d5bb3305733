"""The engine's end of the socket to its client, and the pipe that wakes its loop. Neither ever blocks the loop."""

from __future__ import annotations

import contextlib
import os
import select
import socket

from kvern.engine.wire import FrameReader, Message, encode

READ_BYTES = 1 << 18
FULL_BYTES = 32 << 20  # unsent bytes above which the loop takes no new completions until the client reads


class Wake:
    """Ends a ``poll`` from any thread."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        return self._reader

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: the loop has enough to wake for
            os.write(self._writer, b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 4096)) == 4096:
                pass

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class Channel:
    """Messages in and out. ``open`` turns false when the client is gone."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._reader = FrameReader()
        self._unsent = bytearray()
        self.open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What a poll should wait for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    @property
    def full(self) -> bool:
        return len(self._unsent) > FULL_BYTES

    def send(self, message: Message) -> None:
        """Queue a message and send what the socket takes."""
        self._unsent += encode(message)
        self.flush()

    def flush(self) -> None:
        while self._unsent and self.open:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                self.open = False
                return
            del self._unsent[:sent]

    def receive(self) -> list[Message]:
        """Messages that have arrived. Raises WireError on anything that is not the protocol."""
        messages: list[Message] = []
        while self.open:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.open = False
                break
            messages += self._reader.feed(data)
        return messages

    def drain(self, timeout_s: float) -> None:
        """Send what is left, waiting at most ``timeout_s`` for the client to read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        while self._unsent and self.open and poll.poll(timeout_s * 1000):
            self.flush()

    def close(self) -> None:
        self.open = False
        self._socket.close()
