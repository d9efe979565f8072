"""What travels between the harness and a method's process, and what is refused on the way."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from prunebench.errors import UsageError
from prunebench.methods.counting import BackwardCounter, watching_engine
from prunebench.runner.apart import ApartError, Request, _Conversation, clean_environment
from prunebench.runner.child import Ledger
from prunebench.runner.exchange import (
    LONGEST_LINE,
    Channel,
    GarbledError,
    anonymous_file,
    map_bytes,
    put_bytes,
    put_tensors,
    share_bytes,
    take_tensors,
)
from prunebench.runner.fitted import MOST_NOTES, _notes, _whole


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    one, other = socket.socketpair()
    channel = Channel(one)
    yield channel, other
    channel.close()
    other.close()


@pytest.fixture
def file() -> Iterator[int]:
    made = anonymous_file()
    yield made
    os.close(made)


def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.sendall(b'{"kind": "a"}\n{"kind"')
    assert channel.receive() == ({"kind": "a"}, [])
    assert channel.next_message() is None
    other.sendall(b': "b"}\n')
    assert channel.receive() == ({"kind": "b"}, [])
    other.shutdown(socket.SHUT_WR)
    assert channel.receive() is None


@pytest.mark.parametrize(
    "line", [b"garbage{", b"[1]", b'{"no": "kind"}', b'{"kind": 1}', b"\xff\xfe", b"[" * 10**5]
)
def test_what_is_no_message_is_refused(ends: tuple[Channel, socket.socket], line: bytes) -> None:
    channel, other = ends
    other.sendall(line + b"\n")
    with pytest.raises(GarbledError, match="where results are read"):
        channel.receive()


def test_a_line_without_end_is_refused(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends

    def flood() -> None:
        for _ in range(2 * LONGEST_LINE >> 16):
            other.sendall(b"x" * (1 << 16))
            channel.read_some()

    with pytest.raises(GarbledError):
        flood()


def test_a_reader_that_has_all_may_close_at_once(
    ends: tuple[Channel, socket.socket], file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, other = ends
    send = socket.send_fds

    def send_and_close(*arguments: Any) -> int:
        sent = send(*arguments)
        other.close()
        return sent

    monkeypatch.setattr(socket, "send_fds", send_and_close)
    channel.send({"kind": "a"}, [file])


@pytest.mark.parametrize("said", [["dense"], ["progress"] * 5000], ids=["asked last", "a lot"])
def test_what_a_child_said_before_it_ended_is_heard(said: list[str]) -> None:
    """A harness that the machine lets wait finds the child's messages and its end at once."""
    (keep, keeper), (talk, child), (log, printed) = socket.socketpair(), socket.socketpair(), os.pipe()
    child.sendall("".join(f'{{"kind": "{kind}"}}\n' for kind in [*said, "described"]).encode())
    keeper.sendall(b'{"kind": "report", "status": 0, "late": false}\n')
    for end in (child, keeper):
        end.close()
    os.close(printed)
    request = Request(
        {}, serve=lambda message, _: {"x": torch.ones(1)} if message["kind"] == "dense" else None
    )
    channels = Channel(keep), Channel(talk)
    try:
        assert _Conversation(request, *channels, log, -1, -1).run().message["kind"] == "described"
    finally:
        os.close(log)
        for channel in channels:
            channel.close()


def test_descriptors_come_with_their_message(ends: tuple[Channel, socket.socket], file: int) -> None:
    channel, other = ends
    put_bytes(file, b"content")
    Channel(other).send({"kind": "file"}, [file])
    received = channel.receive()
    assert received is not None
    assert os.pread(received[1][0], 10, 0) == b"content"
    os.close(received[1][0])


def test_tensors_travel_without_pickle(file: int) -> None:
    sent = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "t": torch.zeros(2, 3).T}
    found = take_tensors(file, put_tensors(file, sent), 1 << 20)
    assert found.keys() == sent.keys()
    assert all(torch.equal(found[name], sent[name]) for name in sent)


@pytest.mark.parametrize("size", [0, -1, 1 << 40, None, "8", True])
def test_sizes_that_cannot_be_are_refused(file: int, size: object) -> None:
    put_tensors(file, {"a": torch.zeros(4)})
    with pytest.raises(GarbledError):
        take_tensors(file, size, 1 << 20)


@pytest.mark.parametrize(
    "data", [b"\x00" * 64, b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}", b"short"]
)
def test_what_is_no_safetensors_is_refused(file: int, data: bytes) -> None:
    put_bytes(file, data)
    with pytest.raises(GarbledError, match="no safetensors"):
        take_tensors(file, len(data), 1 << 20)


def test_images_are_mapped_and_writes_stay_private() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    files: list[int] = []
    place = share_bytes(pixels, files)
    one, other = (map_bytes(files[0], **place) for _ in range(2))
    assert torch.equal(one, pixels)
    one.zero_()
    assert torch.equal(other, pixels)
    os.close(files[0])


def test_what_a_method_logs_and_counts_is_checked() -> None:
    assert _notes({"a": 1, "b": 0.5}) == {"a": 1.0, "b": 0.5}
    for values in ({"a": "1"}, {"a": True}, [1], {str(name): 1 for name in range(MOST_NOTES + 1)}):
        with pytest.raises(ApartError):
            _notes(values)
    with pytest.raises(UsageError, match="written by the harness"):
        _notes({"fit_cpu_seconds": 0.0})
    for value in (1.5, True, None, "3", 1 << 60):
        with pytest.raises(ApartError, match="counted"):
            _whole(value)


def test_the_environment_of_a_method_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "PRUNEBENCH_DATA", "GITHUB_TOKEN", "HOME"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    passed = clean_environment()
    assert "secret" not in passed.values()
    assert passed["OMP_NUM_THREADS"] == "1"


def test_steps_that_are_subtracted_stay_spent() -> None:
    ledger = Ledger()
    ledger.own_steps += 100
    ledger.own_steps = 0
    ledger.own_steps += 20
    assert (ledger.own_steps, ledger.spent) == (20, 120)


def test_the_engine_s_runs_are_counted_whoever_starts_them() -> None:
    from torch.autograd import backward, grad

    counter = BackwardCounter()
    x = torch.ones(3, requires_grad=True)
    with counter.running(), watching_engine() as runs:
        (x * x).sum().backward()
        backward((x * x).sum())
        grad((x * x).sum(), x)
    assert (counter.total, runs.count) == (1, 3)
