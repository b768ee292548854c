"""Draw docs/painter-desktop.png and docs/painter-phone.png: `python -m tests.helpers.painter_screenshots MODEL`."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.serve.settings import Settings
from tests.helpers.painter_server import running

DOCS = Path(__file__).parents[2] / "docs"
# A mast of the sample, in its pixels.
MAST = ((448, 120), (449, 190), (453, 260), (460, 400))


def draw(page, address, points, fill):
    page.goto(address)
    page.click("#sample-2")
    expect(page.locator("#status")).to_contain_text("sample.jpg")
    box = page.locator("#canvas").bounding_box()
    scale = min((box["width"] - 24) / 640, (box["height"] - 24) / 427)
    left = box["x"] + (box["width"] - 640 * scale) / 2
    top = box["y"] + (box["height"] - 427 * scale) / 2
    for i, (x, y) in enumerate(points):
        page.mouse.move(left + x * scale, top + y * scale)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    if fill:
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("Filled", timeout=300_000)
        page.evaluate("document.getElementById('status').textContent = 'Filled.'")  # whose time is this machine's


def save(page, name):
    page.mouse.move(1, 1)
    page.wait_for_timeout(300)  # the last frame
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(DOCS / name, optimize=True)


def main(model):
    with running(InpaintGenerator.from_pretrained(model), Settings()) as (_, address), sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 640}, color_scheme="light")
        draw(page, address, MAST, fill=False)
        save(page, "painter-desktop.png")
        page = browser.new_page(viewport={"width": 390, "height": 780}, color_scheme="dark", has_touch=True)
        draw(page, address, MAST, fill=True)
        save(page, "painter-phone.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
