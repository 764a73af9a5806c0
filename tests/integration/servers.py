"""Servers of notebooks on this machine, for a browser that reaches nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest


@contextmanager
def serve(*command: str, alive: str, environment: Mapping[str, str] = {}) -> Iterator[str]:
    """`python -m command` with `{port}` filled in; yields its address once `alive`, a path, answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [part.format(port=port) for part in command]
    server = subprocess.Popen([sys.executable, "-m", *arguments], env={**os.environ, **environment}, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address + alive, server)
        yield address
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """The server and its kernels: a JupyterLab may wait for one of them for ever."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address).close()
            return
        except urllib.error.URLError:
            assert server.poll() is None, "the server has ended"
            time.sleep(0.25)
    pytest.fail(f"nothing answers at {address}")


def open_page(browser: Any, address: str) -> tuple[Any, list[str]]:
    """A page that reaches the server alone, and what dialogs on it say."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    context.route(lambda url: not url.startswith((address, "blob:", "data:")), lambda route: route.abort())
    page, dialogs = context.new_page(), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.set_default_timeout(120_000)
    return page, dialogs
