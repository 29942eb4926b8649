"""Make the pictures of the server's page: a real Chromium, against the scripted server of the tests.

    .venv/bin/python docs/tools/serve_shots.py

Needs `playwright`, `pillow` and a Chromium on the PATH (`chromium`, `chromium-browser` or `google-chrome`). With
`--address` the pictures are those of a server that runs.
"""

import argparse
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "figures"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PROMPT = "How do mountains form?"


def ask(page: Page, *, tokens: int, token: int | None = None) -> None:
    """Send the prompt; wait for `tokens` tokens of each answer; choose one."""
    page.fill("#prompt", PROMPT)
    page.press("#prompt", "Enter")
    page.locator(".answer:last-child .t").nth(tokens - 1).wait_for(timeout=60_000)
    if token is not None:
        page.wait_for_selector("#send", state="visible", timeout=60_000)
        page.locator(".answer .t").nth(token).click()
    page.wait_for_timeout(150)  # two frames, for the heat maps


def shoot(page: Page, name: str, out: Path) -> None:
    """Write one picture."""
    path = out / f"serve-{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:  # a palette: a third of the size, and no colour is missed
        small = picture.convert("RGB").quantize(200, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(path)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description="Make the pictures of the server's page.")
    parser.add_argument("--address", help="a server that runs; left out: a scripted one")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from support.serving.page_stub import Stub, serve

    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("found no Chromium on the PATH; install the package `chromium`")
    stub = Stub(pause=0.01, address=options.address or "", model={"dial": 0.8})
    with nullcontext() if options.address else serve(stub), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])

        def new(size: dict[str, int], scheme: str = "light") -> Page:
            page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1.5)
            page.goto(stub.address)
            page.wait_for_selector("#status[data-state=ready]")
            return page

        page = new(WIDE)
        shoot(page, "empty", options.out)
        for _ in range(14):  # a line of the throughput
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            page.wait_for_timeout(60)
        stub.pause = 0.1
        ask(page, tokens=30 if options.address else 55)  # the answer of a real model may be short
        shoot(page, "streaming", options.out)
        stub.pause = 0.01
        page = new(WIDE)
        page.check("#compare")
        page.fill("#dial-a", "1")
        page.fill("#dial-b", "0.4")
        ask(page, tokens=30, token=8)
        shoot(page, "two-dials", options.out)
        page = new(PHONE)
        ask(page, tokens=30, token=8)
        page.click("#sheet")
        page.wait_for_timeout(150)
        shoot(page, "phone", options.out)
        page = new(WIDE, "dark")
        ask(page, tokens=30, token=37)
        shoot(page, "dark", options.out)
        browser.close()


if __name__ == "__main__":
    main()
