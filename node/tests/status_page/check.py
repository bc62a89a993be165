"""Opens the status page whose URL is the first argument in Chromium, and watches it while tunnels
come and go. With a directory as the second argument, screenshots are written there.
"""

import asyncio
import base64
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import websockets

URL = sys.argv[1]
SCREENSHOTS = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
DEADLINE = 150
SEEN = """({
  state: document.getElementById("state").textContent,
  tunnels: document.getElementById("tunnels").textContent,
  connections: document.getElementById("connections").textContent,
  rate: document.getElementById("rate").textContent,
  nodes: document.getElementById("nodes").rows.length,
  listed: document.getElementById("list").rows.length,
  steps: document.getElementById("setup").rows.length,
  events: document.getElementById("events").children.length,
  path: document.querySelector("#plot-tunnels .path")?.getAttribute("d") ?? "",
  injected: document.querySelectorAll("tbody b, li b").length,
  width: document.documentElement.scrollWidth,
  screen: innerWidth,
})"""


class Page:
    """A tab of the browser, by the Chrome DevTools Protocol."""

    def __init__(self, socket):
        self.socket, self.numbers = socket, itertools.count(1)
        self.answers, self.session = {}, None
        self.complaints, self.requests = [], []

    async def listen(self):
        async for text in self.socket:
            message = json.loads(text)
            if "id" in message:
                self.answers.pop(message["id"]).set_result(message)
            self.note(message.get("method"), message.get("params"))

    def note(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"])

    async def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.answers[number] = answer = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps(message))
        answer = await answer
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def open(self):
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self.session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.call(f"{domain}.enable")
        # What is in the background is not drawn, and so never on a screenshot.
        await self.call("Page.bringToFront")
        await self.look(1280, 900, "light")
        await self.call("Page.navigate", url=URL)

    async def look(self, width, height, scheme):
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    async def seen(self):
        answer = await self.call("Runtime.evaluate", expression=SEEN, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    async def screenshot(self, name):
        if SCREENSHOTS:
            shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
            (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


async def until(what, page, is_so):
    """Looks at the page until it is so, and returns what was seen then."""
    while not is_so(seen := await page.seen()):
        await asyncio.sleep(0.1)
    return seen


async def check(page):
    await page.open()
    loaded = 'document.getElementById("all") !== null'
    while not (await page.call("Runtime.evaluate", expression=loaded))["result"].get("value"):
        await asyncio.sleep(0.1)
    first = await until("a tunnel", page, lambda seen: seen["tunnels"] not in ("", "0"))
    assert first["state"] == "running", first
    moved = await until("other numbers", page, lambda seen: seen["tunnels"] != first["tunnels"])
    assert moved["path"] != first["path"], "the plot did not move"
    await until("throughput", page, lambda seen: seen["rate"] not in ("0 B/s", "0"))
    full = await until("a list", page, lambda seen: seen["listed"] > 0)
    assert full["nodes"] >= 1 and full["steps"] >= 4 and full["events"] >= 2, full
    assert full["injected"] == 0, "a client's name became markup"
    for name, width, height, scheme in [
        ("light", 1280, 1100, "light"),
        ("dark", 1280, 1100, "dark"),
        ("phone", 360, 800, "light"),
    ]:
        await page.look(width, height, scheme)
        seen = await until(name, page, lambda seen: seen["screen"] == width)
        assert seen["width"] <= width, f"{name}: the page is {seen['width']} wide"
        await page.screenshot(name)
    assert not page.complaints, page.complaints
    elsewhere = [url for url in page.requests if not url.startswith((URL, "data:"))]
    assert not elsewhere, elsewhere
    assert any(url.endswith("/api/v1/stream") for url in page.requests), page.requests


async def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", "--disable-background-networking",
             "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            port_file = pathlib.Path(profile) / "DevToolsActivePort"
            while not (port_file.exists() and len(port_file.read_text().splitlines()) == 2):
                assert browser.poll() is None, "chromium has ended"
                await asyncio.sleep(0.05)
            port, path = port_file.read_text().splitlines()
            async with websockets.connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                await check(page)
                listening.cancel()
        finally:
            browser.terminate()
            browser.wait()
    print("fine")


asyncio.run(asyncio.wait_for(main(), DEADLINE))
