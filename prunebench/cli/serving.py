"""The board in a browser: a built site served on the loopback address alone, with a strict content policy."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import threading
import webbrowser
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prunebench.cli.console import console
from prunebench.errors import StoreError, UsageError

HOST = "127.0.0.1"
SITE = Path("site")
INLINE = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
POLICY = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing from the network; scripts are the site's files and those in its pages, by their hash."""


def content_policy(page: bytes) -> str:
    """The policy of a page: its inline scripts are named by their SHA-256, others do not run."""
    digests = dict.fromkeys(hashlib.sha256(script).digest() for script in INLINE.findall(page))
    return POLICY.format(
        hashes="".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    )


class SiteHandler(SimpleHTTPRequestHandler):
    """Files of the site to whoever asks the loopback address by its name; no listings, nothing outside the folder."""

    server_version, sys_version = "prunebench", ""

    def do_GET(self) -> None:
        if self._allowed():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._allowed():
            super().do_HEAD()

    def _allowed(self) -> bool:
        """Another host name is a page elsewhere that points its own name here; a link may lead out of the folder."""
        name = (self.headers.get("Host") or "").rpartition(":")[0]
        inside = Path(self.translate_path(self.path)).resolve().is_relative_to(Path(self.directory).resolve())
        if name in (HOST, "localhost") and inside:
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", self._policy())
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def _policy(self) -> str:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        return content_policy(path.read_bytes() if path.suffix == ".html" and path.is_file() else b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to whoever started it."""


def make_server(site: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder on the loopback address; port 0 takes a free one. Raises UsageError for a taken one."""
    try:
        return ThreadingHTTPServer((HOST, port), functools.partial(SiteHandler, directory=str(site)))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--port {port}: {why}; leave the option out and a free port is taken") from error


def find_site(out: Path, results: Path | None) -> Path:
    """The built site of a board's folder; built from the results first where it is not there."""
    site = out / SITE
    if (site / "index.html").is_file():
        return site
    from prunebench.cli.listing import default_results
    from prunebench.cli.progress import write_leaderboard

    write_leaderboard([results or default_results()], out)
    if not (site / "index.html").is_file():
        raise StoreError(f"{site}: no page was built; see `prunebench leaderboard`")
    return site


def serve_board(out: Path, results: Path | None, port: int, *, browser: bool) -> None:
    """Serve until Ctrl-C, and open a browser."""
    site = find_site(out, results)
    with make_server(site, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/"
        console.print(f"{site} at {address} (Ctrl-C ends it)", soft_wrap=True)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("stopped")
