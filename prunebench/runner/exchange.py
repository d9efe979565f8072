"""The exchange between processes that do not trust each other: JSON lines, and tensors in memory without a name.

Tensors travel as safetensors, images as bytes; nothing is ever unpickled. The receiver copies what it was sent before
it looks at it, and reads no more than it expects.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import math
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import PruneBenchError

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_LINE = 1 << 20
"""Bytes of a message."""
MOST_FILES = 16
"""File descriptors that come with one message."""


class GarbledError(PruneBenchError):
    """What came is no message, or no tensors."""


class Channel:
    """One end of a socket pair: a JSON object a line, and file descriptors beside it where this end takes any."""

    def __init__(self, end: socket.socket, *, most_files: int = MOST_FILES) -> None:
        self._end = end
        self._room = socket.CMSG_LEN(most_files * array.array("i").itemsize) if most_files else 0
        self._waiting = b""
        self._files: list[int] = []

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._end.fileno()

    def send(self, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
        """Send a message. Raises OSError where nobody listens any more."""
        data = json.dumps(message).encode() + b"\n"
        if files:
            sent = socket.send_fds(self._end, [data], list(files))
            data = data[sent:]
        if data:  # to send nothing fails where the other end has read all and closed
            self._end.sendall(data)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and the descriptors that came so far; None where the other end is closed.

        Raises GarbledError for what is no message.
        """
        while b"\n" not in self._waiting:
            if not self.read_some():
                return None
        return self.next_message()

    def next_message(self) -> tuple[dict[str, Any], list[int]] | None:
        """A message that has come whole, without waiting; None where there is none."""
        line, found, rest = self._waiting.partition(b"\n")
        if not found:
            return None
        self._waiting, files, self._files = rest, self._files, []
        message = parse_message(line)
        if message is None:
            raise GarbledError(f"wrote {line[:80]!a} where results are read; print to standard output")
        return message, files

    def read_some(self) -> bool:
        """Wait for bytes and keep them; False at the end. Raises GarbledError for a line without end."""
        try:
            data, beside, _, _ = self._end.recvmsg(1 << 16, self._room)
        except ConnectionError:
            return False
        for level, kind, content in beside:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self._files += found
        self._waiting += data
        if len(self._waiting) > LONGEST_LINE and b"\n" not in self._waiting:
            raise GarbledError(f"wrote {self._waiting[:80]!a}... where results are read")
        return bool(data)

    def stop_waiting(self) -> None:
        """From now on raise BlockingIOError where nothing has come."""
        self._end.setblocking(False)

    def close(self) -> None:
        """Close this end, and the descriptors that nobody took."""
        for file in self._files:
            os.close(file)
        self._files = []
        self._end.close()


def parse_message(line: str | bytes) -> dict[str, Any] | None:
    """An object with a `kind`, as it is written on a line; None for a line that is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None


def anonymous_file() -> int:
    """A file without a name, in memory where the system can: whoever holds the descriptor can read it, nobody else."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tensors")
    file, path = tempfile.mkstemp()
    Path(path).unlink()
    return file


@contextlib.contextmanager
def closing_all(files: list[int]) -> Iterator[list[int]]:
    """Close the descriptors of a list, those appended meanwhile too."""
    try:
        yield files
    finally:
        for file in files:
            with contextlib.suppress(OSError):
                os.close(file)


def put_tensors(file: int, tensors: Mapping[str, Tensor]) -> int:
    """Write tensors into a file from its beginning; gives the number of bytes."""
    from safetensors.torch import save

    data = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    put_bytes(file, data)
    return len(data)


def put_bytes(file: int, data: Any) -> None:
    """Write bytes into a file from its beginning, instead of what it held."""
    os.ftruncate(file, 0)
    view, at = memoryview(data).cast("B"), 0
    while at < len(view):
        at += os.pwrite(file, view[at : at + (1 << 30)], at)


def take_tensors(file: int, size: Any, most: int) -> dict[str, Tensor]:
    """The tensors in the first `size` bytes of a file, copied. Raises GarbledError for more than `most`, or none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not isinstance(size, int) or not 0 < size <= most:
        raise GarbledError(f"returned {size!r:.20} bytes of tensors; at most {most} are read")
    pieces, at = [], 0
    while at < size and (piece := os.pread(file, min(size - at, 1 << 30), at)):
        pieces.append(piece)
        at += len(piece)
    try:
        return load(b"".join(pieces))
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise GarbledError(f"returned no safetensors: {error}") from error


def share_bytes(pixels: Tensor, files: list[int]) -> dict[str, Any]:
    """Share uint8 `[N, H, W, C]`: the file that the tensor is mapped from, else a copy in memory; appended to `files`.

    Gives what `map_bytes` needs. Of a mapped file nothing is copied, which would be gigabytes.
    """
    place = _mapped_from(pixels) if pixels.device.type == "cpu" and pixels.is_contiguous() else None
    if place is None:
        files.append(anonymous_file())
        put_bytes(files[-1], pixels.cpu().contiguous().numpy())
        offset = 0
    else:
        files.append(os.open(place[0], os.O_RDONLY | os.O_CLOEXEC))
        offset = place[1]
    return {"shape": list(pixels.shape), "offset": offset}


def map_bytes(file: int, shape: Sequence[int], offset: int) -> Tensor:
    """The uint8 tensor that `share_bytes` shared, mapped to the end; what is written into it stays in this process.

    Through the C library, for Python's own mapping keeps a descriptor of the whole file.
    """
    import torch

    count = math.prod(shape)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    length = count + offset - start
    place = library.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, file, start)
    if place == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "the images cannot be mapped")
    held = (ctypes.c_uint8 * count).from_address(place + offset - start)
    return torch.frombuffer(held, dtype=torch.uint8).view(*shape)


def _mapped_from(pixels: Tensor) -> tuple[str, int] | None:
    """The file and the position in it that a tensor's memory is mapped from; None where it is memory of its own."""
    at, end = pixels.data_ptr(), pixels.data_ptr() + pixels.numel()
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        span, _, rest = line.partition(" ")
        first, last = (int(bound, 16) for bound in span.split("-"))
        if first <= at and end <= last:
            fields = rest.split(maxsplit=4)
            path = fields[4] if len(fields) == 5 else ""
            if path.startswith("/") and Path(path).is_file():
                return path, int(fields[1], 16) + at - first
    return None
