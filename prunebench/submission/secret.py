"""The maintainer's secret, from which fresh draws follow; it is shown to nobody, its commitment to everybody.

It comes from `PRUNEBENCH_SECRET`, or from the file that `PRUNEBENCH_SECRET_FILE` names, and leaves neither this process
nor its memory: children are handed the numbers of single draws, on their standard input. The commitment is published
before submissions come in. When the secret is disclosed later, everybody can compute the commitment again, and so see
that the draws were not chosen to suit anybody.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from prunebench.errors import UsageError

VARIABLE, FILE_VARIABLE = "PRUNEBENCH_SECRET", "PRUNEBENCH_SECRET_FILE"
LABEL = "PruneBench fresh draw 1"
"""Of commitments and draws: raise its number when either is computed otherwise."""
SHORTEST, LONGEST, FEWEST_SIGNS = 32, 1024, 8
"""Of a secret: characters, and different ones among them, so that nobody finds it from its commitment by trying."""
MAKE = f'python -c "import secrets; print(secrets.token_hex(32))" > FILE; chmod 600 FILE; export {FILE_VARIABLE}=FILE'


@dataclass(frozen=True)
class Secret:
    """A secret text; what is written or printed of it shows its commitment alone."""

    _text: str = field(repr=False)

    def __post_init__(self) -> None:
        if not SHORTEST <= len(self._text) <= LONGEST or len({*self._text}) < FEWEST_SIGNS:
            raise UsageError(
                f"the secret is one that can be guessed: want {SHORTEST} to {LONGEST} characters at random: {MAKE}"
            )

    def __reduce__(self) -> tuple[str, ...]:
        raise TypeError("a secret does not travel between processes")

    @property
    def commitment(self) -> str:
        """SHA-256 of label and secret, 64 hex digits: to be published beforehand."""
        return hashlib.sha256(f"{LABEL}\n{self._text}".encode()).hexdigest()

    def freshness(self, task: str, version: int, seed: int) -> tuple[int, ...]:
        """Eight 32-bit words for `Task.refreshed`: HMAC-SHA-256 of the run's task and seed, keyed by the secret."""
        subject = f"{LABEL}\n{task}\n{version}\n{seed}".encode()
        digest = hmac.new(self._text.encode(), subject, hashlib.sha256).digest()
        return tuple(int.from_bytes(digest[at : at + 4], "big") for at in range(0, len(digest), 4))


def take_secret() -> Secret | None:
    """The secret, if there is one; from then on no child of this process finds it in its environment.

    Raises UsageError for one that can be guessed, and for a file that others may read.
    """
    text, place = os.environ.pop(VARIABLE, None), os.environ.pop(FILE_VARIABLE, None)
    if text:
        return Secret(text.strip())
    return Secret(_read(Path(place))) if place else None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode) or (os.name == "posix" and state.st_mode & 0o077):
                raise UsageError(f"{FILE_VARIABLE}: want a file that only its owner may read: chmod 600")
            return stream.read(LONGEST + 2).decode("ascii").strip()
    except OSError as error:
        raise UsageError(f"{FILE_VARIABLE}: the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{FILE_VARIABLE}: the file is no text of ASCII characters: {MAKE}") from None
