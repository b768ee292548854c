"""``python -m benchmarks.painter``: from pressing Enter in the painter to the filled photo on the screen.

`fastinpaint serve` with the model that ships, and a headless Chromium, on this machine; the photo has a megapixel, the
hole is small. Times are the browser's; what the server did meanwhile is what it says itself (Server-Timing).
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import fastinpaint

# Resolves when the picture is on the screen: two frames after the page says so.
_PRESS = """async () => {
  performance.clearResourceTimings();
  const status = document.getElementById("status"), canvas = document.getElementById("canvas");
  status.textContent = "";
  canvas.focus();
  const start = performance.now();
  canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true}));
  const done = () => status.textContent.startsWith("Filled");
  await new Promise((resolve) => {
    const observer = new MutationObserver(() => done() && (observer.disconnect(), resolve()));
    observer.observe(status, {childList: true, characterData: true, subtree: true});
  });
  for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
  const end = performance.now();
  const [request] = performance.getEntriesByType("resource").filter((entry) => entry.name.endsWith("/inpaint"));
  return {
    "Enter to picture": end - start,
    "page, before the request": request.startTime - start,
    "request and answer": request.responseEnd - request.startTime,
    ...Object.fromEntries(request.serverTiming.map(({name, duration}) => [`server: ${name}`, duration])),
    "page, after the answer": end - request.responseEnd,
  };
}"""


def photograph(megapixels: float) -> tuple[bytes, bytes]:
    """Return a photo of about so many megapixels as JPEG, and a mask with a hole of 64 x 64 pixels as PNG."""
    sample = Path(fastinpaint.__file__).parent / "serve" / "page" / "sample.jpg"
    with Image.open(sample) as image:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        photo = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    mask = Image.new("L", photo.size)
    left, top = photo.width // 2, photo.height // 2
    ImageDraw.Draw(mask).rectangle((left, top, left + 63, top + 63), fill=255)
    files = []
    for picture, kind, kept in ((photo, "JPEG", {"quality": 92}), (mask, "PNG", {})):
        file = io.BytesIO()
        picture.save(file, kind, **kept)
        files.append(file.getvalue())
    return files[0], files[1]


def measure(address: str, megapixels: float, rounds: int, chromium: str) -> list[dict[str, float]]:
    """Fill, take back and fill again; return milliseconds by name for each filling."""
    from playwright.sync_api import expect, sync_playwright

    photo, mask = photograph(megapixels)
    found = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(address)
        page.set_input_files("#file", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo})
        expect(page.locator("#status")).to_contain_text("photo.jpg", timeout=300_000)
        page.set_input_files("#mask-file", {"name": "mask.png", "mimeType": "image/png", "buffer": mask})
        expect(page.locator("#status")).to_have_text("Mask loaded.", timeout=300_000)
        for _ in range(rounds):
            found.append(page.evaluate(_PRESS))
            page.wait_for_selector("#busy", state="hidden")
            page.keyboard.press("Control+z")
        browser.close()
    return found


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.painter", description=__doc__)
    parser.add_argument("--model", default="small", help="as for fastinpaint serve (default: small, which ships)")
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=9, help="fillings after the first one (default: 9)")
    options = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("no Chromium found (Debian's package is chromium)")
    command = [sys.executable, "-m", "fastinpaint", "serve", "--no-browser", "--port", "0"]
    command += ["--device", "cpu", "--model", options.model]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        line = server.stderr.readline()
        if not line.startswith("fastinpaint: http"):
            raise SystemExit(line + server.stderr.read())
        first, *others = measure(line.split()[-1], options.megapixels, 1 + options.rounds, chromium)
    finally:
        server.terminate()
        server.wait()
    print("| ms | first | median of the others | least | most |\n|---|---|---|---|---|")
    for name, value in first.items():
        values = [other[name] for other in others] or [value]
        print(f"| {name} | {value:.0f} | {statistics.median(values):.0f} | {min(values):.0f} | {max(values):.0f} |")


if __name__ == "__main__":
    main()
