"""Take the pictures of the page that `serving.md` shows, with a headless Chromium.

    python docs/screenshots.py BUNDLE ITEM…

BUNDLE is served in this process; ITEM… is the history. Needs chromium, chromium-driver, selenium
and pillow. Pictures go to docs/images, with 128 colours each, so that they stay small.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from pathlib import Path

import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.remote.webdriver import WebDriver

from sidrec.serving.app import create_app
from sidrec.serving.settings import ServeSettings

FOLDER = Path(__file__).parent / "images"
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync")  # fmt: skip
WHY = "document.querySelector('#list button').click()"
REMOVE = "document.querySelector('[data-does=Remove]').click()"
SHOTS = (
    ("recommendations", "list", "light", (1280, 860), WHY),
    ("beam", "beam", "light", (1280, 1010), "document.querySelectorAll('.prefix')[3].focus()"),
    ("what-if", "what-if", "dark", (1280, 900), REMOVE),
    ("side-by-side", "side-by-side", "light", (1280, 760), ""),
    ("tree", "tree/{prefix}", "dark", (1280, 760), ""),
    ("narrow", "list", "light", (400, 860), ""),
)  # fmt: skip
"""Name, view, scheme, size in pixels, what is done before."""


def main() -> None:
    """Serve, look, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("items", nargs="+")
    parser.add_argument("--only", nargs="*", default=[name for name, *_ in SHOTS])
    chosen = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = ServeSettings(
            bundle=chosen.bundle, store=f"{folder}/store.sqlite", device="cpu", timeout_ms=60_000
        )
        app = create_app(settings)
        running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=running.run)
        thread.start()
        while not running.started:
            time.sleep(0.05)
        port = running.servers[0].sockets[0].getsockname()[1]
        recommender = app.state.service.models.current.recommender
        row = recommender.items.row_of[chosen.items[-1]]
        prefix = str(recommender.ids.codes[row][0])
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for switch in (*SWITCHES, f"--user-data-dir={folder}/profile"):
            options.add_argument(switch)
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        with webdriver.Chrome(options=options, service=service) as driver:
            for name, view, scheme, size, script in SHOTS:
                if name in chosen.only:
                    url = f"http://127.0.0.1:{port}/#/{view.format(prefix=prefix)}"
                    save(name, shot(driver, url, chosen.items, scheme, size, script))
        running.should_exit = True
        thread.join()


def shot(
    driver: WebDriver, url: str, items: list[str], scheme: str, size: tuple[int, int], script: str
) -> bytes:
    """One view with the items as history, as PNG."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get("about:blank")
    driver.get(url)
    for place, item in enumerate(items, 1):
        driver.find_element("id", "item-input").send_keys(item)
        wait(
            driver,
            "document.querySelector('#item-options').textContent.includes(arguments[0])",
            item,
        )
        driver.find_element("id", "item-input").send_keys("\ue007")
        wait(
            driver,
            "document.querySelectorAll('#history [data-item]').length === arguments[0]",
            place,
        )
    settled(driver)
    if script:
        driver.execute_script(script)
        settled(driver)
    else:
        driver.execute_script("document.activeElement.blur()")
    return driver.get_screenshot_as_png()


def settled(driver: WebDriver) -> None:
    """Wait until nothing is asked any more."""
    time.sleep(0.3)
    wait(driver, "!document.querySelector('main[aria-busy]')")
    time.sleep(1)


def wait(driver: WebDriver, script: str, *values: object) -> None:
    """Until a line of JavaScript gives true."""
    end = time.monotonic() + 120
    while not driver.execute_script(f"return {script}", *values):
        if time.monotonic() > end:
            raise TimeoutError(script)
        time.sleep(0.05)


def save(name: str, png: bytes) -> None:
    """Write the picture small."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.quantize(128, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
