"""Debian's own Firefox, over WebDriver BiDi: Playwright drives only one of its own, which would have to be fetched."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
SET = {
    "network.proxy.type": 1,  # where nobody answers: nothing is fetched, whoever asks for it
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
}
TAB, HOME, END, ARROW_RIGHT = "\ue004", "\ue011", "\ue010", "\ue014"


class Firefox:
    """A browser with one page, and what that page complained of."""

    def __init__(self, profile: Path) -> None:
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in SET.items()]
        (profile / "user.js").write_text("\n".join(lines))
        command = [str(FIREFOX), "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._loop, self._sent = asyncio.new_event_loop(), 0
        self.messages: list[str] = []
        self._socket = self._loop.run_until_complete(self._connect(profile / "WebDriverBiDiServer.json"))
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self._page = self.ask("browsingContext.create", type="window")["context"]  # the first window never has the focus

    async def _connect(self, listening: Path) -> Any:
        from tornado.websocket import websocket_connect

        end = time.monotonic() + 60
        while not listening.exists() and self._process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.1)
        place = json.loads(listening.read_text())
        return await websocket_connect(f"ws://{place['ws_host']}:{place['ws_port']}/session", max_message_size=2**27)

    def ask(self, method: str, **params: Any) -> Any:
        """Send a command; its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(method, params), 60))

    async def _ask(self, method: str, params: dict[str, Any]) -> Any:
        self._sent += 1
        await self._socket.write_message(json.dumps({"id": self._sent, "method": method, "params": params}))
        while True:
            answer = json.loads(await self._socket.read_message())
            if answer.get("id") == self._sent:
                if answer["type"] == "error":
                    raise RuntimeError(f"{method}: {answer['message']}")
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, event: str | None, said: dict[str, Any]) -> None:
        if event == "log.entryAdded":
            self.messages.append(str(said["text"]))
        elif event == "network.beforeRequestSent" and said["request"]["url"].startswith("http"):
            self.messages.append(f"asked for {said['request']['url']}")

    def open(self, path: Path) -> None:
        """Go to a file, and wait until it is read."""
        self.messages.clear()
        self.ask("browsingContext.navigate", context=self._page, url=path.as_uri(), wait="complete")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is, as JSON holds it."""
        found = self.ask(
            "script.evaluate", expression=f"JSON.stringify({expression})", target={"context": self._page}, awaitPromise=True
        )
        if found["type"] != "success":
            raise RuntimeError(found["exceptionDetails"]["text"])
        return json.loads(found["result"].get("value", "null"))

    def until(self, expression: str, ok: Callable[[Any], bool] = bool, seconds: float = 30) -> Any:
        """The value of an expression, once it is as it should be or the time is over."""
        end = time.monotonic() + seconds
        while not ok(found := self.value(expression)) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def press(self, *keys: str) -> None:
        """Press and release keys, as a person does."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("input.performActions", context=self._page, actions=[{"type": "key", "id": "keys", "actions": actions}])

    def picture(self) -> bytes:
        """What is seen of the page, as PNG."""
        return base64.b64decode(self.ask("browsingContext.captureScreenshot", context=self._page)["data"])

    def close(self) -> None:
        """End the browser."""
        self.ask("browser.close")
        self._socket.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        self._process.wait(60)
