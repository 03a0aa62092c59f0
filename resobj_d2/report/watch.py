"""A page that follows a training: losses, AP, objectness, learning rate, detections.

::

    resobj-d2 watch output/RUN

It reads ``metrics.json`` and ``samples`` of the run's folder, writes nothing, and can be started
and ended at any time. Only this machine can open the page.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from resobj_d2.command import CommandParser, run_command
from resobj_d2.plots.scalars import FILE, Scalars, read_scalars

from . import plots
from .samples import FOLDER
from .sections import training_panels

__all__ = ["LiveRun", "make_server", "main"]

PORT = 8008
_ADDRESS = "127.0.0.1"
_PAGE = Path(__file__).parent / "page"
_MOST_SAMPLES = 50


class LiveRun:
    """What there is to see of a run at this moment.

    Args:
        folder: of the run.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder).expanduser().absolute()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is not the folder of a run: it does not exist")
        self._environment = Environment(loader=FileSystemLoader(_PAGE), autoescape=True)
        self._script = (_PAGE / "watch.js").read_text(encoding="utf-8")
        self._drawing = (
            threading.Lock()
        )  # matplotlib's style is the process's, requests are threads

    @property
    def policy(self) -> str:
        """The page's content policy: its own script, its own pictures, nothing from elsewhere."""
        digest = base64.b64encode(hashlib.sha256(self._script.encode()).digest()).decode()
        return (
            "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
            f"connect-src 'self'; script-src 'sha256-{digest}'; frame-ancestors 'none'"
        )

    def samples(self) -> dict[str, Path]:
        """The pictures of evaluations by name, the newest first."""
        folder = self.folder / FOLDER
        if not folder.is_dir():
            return {}
        files = [x for x in folder.iterdir() if x.suffix == ".jpg" and not x.is_symlink()]
        newest = sorted((x for x in files if x.is_file()), key=lambda x: x.name, reverse=True)
        return {file.name: file for file in newest[:_MOST_SAMPLES]}

    def state(self) -> dict[str, str]:
        """``version``, which changes with the files, and ``text``, when they last did."""
        stamps = [_stamp(self.folder / FILE), *map(_stamp, self.samples().values())]
        newest = max(stamps)
        text = "nothing has been written yet"
        if newest:
            text = f"last written {_ago(time.time() - newest / 1e9)} ago"
        return {"version": "-".join(map(str, stamps)), "text": text}

    def page(self) -> str:
        """The whole page."""
        return self._environment.get_template("watch.html").render(
            title=self.folder.name,
            folder=str(self.folder),
            style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
            script=Markup(self._script),
            content=Markup(self.content()),
        )

    def content(self) -> str:
        """The part of the page that changes."""
        scalars = read_scalars(self.folder)
        panels = training_panels(scalars)
        with self._drawing:
            plot = plots.lines(panels, x_label="iteration") if panels else ""
        return self._environment.get_template("live.html").render(
            figures=_figures(scalars),
            plot=Markup(plot),
            samples=[
                {"name": name, "title": _title(name), "stamp": _stamp(file)}
                for name, file in self.samples().items()
            ],
        )


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _ago(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0, seconds):.0f} seconds"


def _title(name: str) -> str:
    """``0000499_cells_test.jpg`` as words."""
    iteration, _, dataset = name.removesuffix(".jpg").partition("_")
    return f"after iteration {int(iteration)}, {dataset}" if iteration.isdigit() else name


def _figures(scalars: Scalars) -> list[tuple[str, str]]:
    names = {
        "total_loss": ("loss", "{:.4g}"),
        "bbox/AP": ("AP", "{:.1f}"),
        "bbox/AP50": ("AP50", "{:.1f}"),
        "validation/total_loss": ("validation loss", "{:.4g}"),
        "lr": ("learning rate", "{:.3g}"),
        "time": ("seconds per iteration", "{:.2f}"),
    }
    losses = scalars.get("total_loss")
    figures = [("iteration", str(losses[-1][0] + 1))] if losses else []
    return figures + [
        (title, form.format(scalars[name][-1][1]))
        for name, (title, form) in names.items()
        if scalars.get(name)
    ]


def make_server(run: LiveRun, port: int) -> ThreadingHTTPServer:
    """A server of the page on this machine's own address.

    Args:
        run: to show.
        port: 0 for a free one.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers to four addresses; a path is only ever looked up among the names that exist."""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            # A page of another site that resolves to this address must not read the answer.
            # Of port 80 a browser names the host alone.
            if self.headers.get("Host", "").partition(":")[0] not in (_ADDRESS, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            try:
                found = _find(run, urlsplit(self.path).path)
            except OSError:  # written anew at this moment
                found = None
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, content = found
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", run.policy)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = ThreadingHTTPServer((_ADDRESS, port), Handler)
    server.daemon_threads = True
    return server


def _find(run: LiveRun, path: str) -> tuple[str, bytes] | None:
    """Kind and content of what an address means; None for all others."""
    if path in ("/", "/index.html"):
        return "text/html; charset=utf-8", run.page().encode()
    if path == "/content.html":
        return "text/html; charset=utf-8", run.content().encode()
    if path == "/state.json":
        return "application/json", json.dumps(run.state()).encode()
    folder, _, name = path.rpartition("/")
    file = run.samples().get(unquote(name)) if folder == f"/{FOLDER}" else None
    return None if file is None else ("image/jpeg", file.read_bytes())


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(prog="resobj-d2 watch", description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN", help="OUTPUT_DIR of a training")
    parser.add_argument(
        "--port", type=_port, default=PORT, metavar="N", help="default: %(default)s; 0: a free one"
    )
    args = parser.parse_args(argv)
    run = LiveRun(args.run)
    try:
        server = make_server(run, args.port)
    except OSError as error:
        raise OSError(
            f"port {args.port} cannot be used ({error.strerror}): give --port N"
        ) from None
    print(f"http://{_ADDRESS}:{server.server_port} shows {run.folder}; Ctrl-C ends it", flush=True)
    with server:
        server.serve_forever()
    return 0


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"must be in 0..65535, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
