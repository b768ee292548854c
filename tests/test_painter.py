"""The painter's page in a real browser: what is drawn, filled and saved, pixel by pixel."""

import io
import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")

from fastinpaint.cli import main
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.serve.settings import Settings
from tests.helpers.painter_server import running

playwright.expect.set_options(timeout=120_000)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found (Debian's package is chromium)")

HEIGHT, WIDTH = 240, 320
DOWN, ACROSS = np.mgrid[:HEIGHT, :WIDTH]


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return InpaintGenerator(2, head_norm=False)


@pytest.fixture(scope="module")
def address(generator):
    with running(generator, Settings()) as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def start(browser, address):
    """Opens the page; fails the test on any error in its console or any request to another host."""
    contexts, errors = [], []

    def note(text):
        if not text.startswith("Failed to load resource"):  # an answer of 400 or more
            errors.append(text)

    def open_page(**options):
        context = browser.new_context(viewport={"width": 1001, "height": 700}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and note(message.text))
        page.on("request", lambda request: request.url.startswith((address, "blob:")) or errors.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def jpeg(tmp_path, size=(WIDTH, HEIGHT), name="photo.jpg", **options):
    width, height = size
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([across * 255 // width, down * 255 // height, (across + down) % 256], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, quality=90, **options)
    return tmp_path / name


class Painting:
    """The page with a photo at 100 %, driven in the photo's pixels."""

    def __init__(self, page, photo, size=(WIDTH, HEIGHT)):
        self.page = page
        page.set_input_files("#file", photo)
        page.wait_for_selector("#empty", state="hidden")
        page.keyboard.press("1")
        box = page.locator("#canvas").bounding_box()
        self.left = box["x"] + box["width"] / 2 - size[0] / 2
        self.top = box["y"] + box["height"] / 2 - size[1] / 2

    def drag(self, *points):
        for i, (x, y) in enumerate(points):
            self.page.mouse.move(self.left + x + 0.5, self.top + y + 0.5)
            if i == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def save(self, what):
        if what != "save":
            self.page.click("#more summary")
        with self.page.expect_download() as download:
            self.page.click(f"#{what}")
        self.idle()
        return download.value.path().read_bytes()

    def mask(self):
        return np.asarray(Image.open(io.BytesIO(self.save("save-mask"))))

    def idle(self):
        self.page.wait_for_selector("#busy", state="hidden")

    def size(self, pixels):
        self.page.evaluate(f"size.value = {pixels}; size.dispatchEvent(new Event('input'))")

    def tool(self, name):
        self.page.check(f"[name=tool][value={name}]", force=True)

    def fill(self):
        self.page.focus("#canvas")
        self.page.keyboard.press("Enter")
        playwright.expect(self.page.locator("#status")).to_contain_text("Filled")
        self.idle()


@pytest.fixture
def painting(start, tmp_path):
    return Painting(start(), jpeg(tmp_path))


def disc(x, y, diameter):
    return (ACROSS - x) ** 2 + (DOWN - y) ** 2 <= (diameter / 2) ** 2


def same(mask, wanted):
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.where(wanted, 255, 0))


class TestTools:
    def test_brush_eraser_size_and_steps(self, painting):
        page = painting.page
        painting.size(21)
        painting.drag((50, 60), (50, 60))
        painting.drag((100, 100), (150, 100), (150, 130))
        first = disc(50, 60, 21)
        along = np.clip(ACROSS, 100, 150), np.clip(DOWN, 100, 130)
        stroke = (ACROSS - along[0]) ** 2 + (DOWN - 100) ** 2 <= 10.5**2
        stroke |= (ACROSS - 150) ** 2 + (DOWN - along[1]) ** 2 <= 10.5**2
        same(painting.mask(), first | stroke)
        painting.tool("eraser")
        page.keyboard.press("[")
        assert page.input_value("#size") == "18"
        page.keyboard.press("]")
        assert page.input_value("#size") == "21"
        painting.drag((50, 60), (55, 60))
        erased = first & ~(((ACROSS - np.clip(ACROSS, 50, 55)) ** 2 + (DOWN - 60) ** 2) <= 10.5**2)
        same(painting.mask(), erased | stroke)
        page.keyboard.press("Control+z")
        same(painting.mask(), first | stroke)
        page.click("#undo")
        same(painting.mask(), first)
        page.keyboard.press("Control+Shift+z")
        page.click("#redo")
        same(painting.mask(), erased | stroke)
        assert page.is_disabled("#redo")

    def test_rectangle_and_clear(self, painting):
        painting.tool("rectangle")
        painting.drag((200, 150), (100, 20))
        wanted = (ACROSS >= 100) & (ACROSS <= 200) & (DOWN >= 20) & (DOWN <= 150)
        same(painting.mask(), wanted)
        painting.drag((300, 200), (2000, 2000))  # out of the photo
        wanted |= (ACROSS >= 300) & (DOWN >= 200)
        same(painting.mask(), wanted)
        painting.page.click("#clear")
        same(painting.mask(), wanted & False)
        painting.page.click("#undo")
        same(painting.mask(), wanted)

    def test_lasso(self, painting):
        painting.tool("lasso")
        corners = [(40, 30), (200, 41), (103, 190)]
        painting.drag(*corners)
        sides = [
            (x1 - x0) * (DOWN - y0) - (y1 - y0) * (ACROSS - x0)
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True)
        ]
        inside, edge = np.all([side > 0 for side in sides], 0), np.any([side == 0 for side in sides], 0)
        mask = painting.mask()
        np.testing.assert_array_equal(mask[~edge], np.where(inside, 255, 0)[~edge])

    def test_grow(self, painting):
        painting.tool("rectangle")
        painting.drag((100, 100), (140, 120))
        painting.drag((5, 5), (5, 5))
        before = painting.mask() > 0
        painting.page.fill("#grow-by", "7")
        painting.page.click("#grow")
        wanted = np.zeros_like(before)
        for y, x in np.argwhere(before):
            wanted |= (DOWN - y) ** 2 + (ACROSS - x) ** 2 <= 49
        same(painting.mask(), wanted)
        painting.page.keyboard.press("Control+z")
        same(painting.mask(), before)

    def test_keyboard_alone(self, painting):
        page = painting.page
        page.mouse.move(5, 5)  # away from the canvas
        page.focus("#canvas")
        page.keyboard.press("r")
        for key in ["ArrowLeft", "Space", *["Shift+ArrowRight"] * 3, *["ArrowDown"] * 4, "Space"]:
            page.keyboard.press(key)
        wanted = (ACROSS >= 159) & (ACROSS <= 189) & (DOWN >= 120) & (DOWN <= 124)
        same(painting.mask(), wanted)
        page.keyboard.press("Delete")
        same(painting.mask(), wanted & False)

    def test_the_view_follows_the_keyboard(self, painting):
        page = painting.page
        page.mouse.move(5, 5)
        page.focus("#canvas")
        page.keyboard.press("1")
        for _ in range(8):
            page.keyboard.press("+")

        def red():
            """The first channel within the left and the right side of the canvas: it grows to the right."""
            page.wait_for_timeout(150)  # a frame
            shot = Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")
            return [shot.getpixel((x, shot.height // 4))[0] for x in (12, shot.width - 13)]  # not the focus outline

        right = red()[1]
        for _ in range(12):
            page.keyboard.press("Shift+ArrowRight")  # from the middle, 160, to 280
        assert red()[1] > right + 20
        page.keyboard.press("h")
        before = red()
        for _ in range(12):
            page.keyboard.press("ArrowLeft")
        assert red()[0] < before[0] - 20

    def test_drawing_ends_the_comparison(self, painting):
        page = painting.page
        painting.tool("rectangle")
        painting.drag((20, 20), (60, 60))
        painting.fill()
        page.evaluate("compare.value = 80; compare.dispatchEvent(new Event('input'))")
        painting.drag((100, 100), (140, 140))
        assert page.input_value("#compare") == "0"

    def test_grow_by_what_cannot_be(self, painting):
        painting.drag((100, 100), (110, 100))
        before = painting.mask() > 0
        for value in ("0", "101", ""):
            painting.page.fill("#grow-by", value)
            painting.page.click("#grow")
            playwright.expect(painting.page.locator("#error")).to_have_text("The mask can grow by 1 to 100 pixels.")
            painting.page.keyboard.press("Escape")
            playwright.expect(painting.page.locator("#error")).to_be_hidden()
        same(painting.mask(), before)

    def test_load_mask(self, painting, tmp_path):
        wanted = disc(200, 100, 55)
        Image.fromarray(np.where(wanted, 128, 127).astype(np.uint8)).save(tmp_path / "mask.png")
        painting.page.set_input_files("#mask-file", tmp_path / "mask.png")
        playwright.expect(painting.page.locator("#status")).to_have_text("Mask loaded.")
        same(painting.mask(), wanted)
        Image.new("L", (8, 8)).save(tmp_path / "small.png")
        painting.page.set_input_files("#mask-file", tmp_path / "small.png")
        playwright.expect(painting.page.locator("#error")).to_contain_text("320 × 240, it has 8 × 8")

    def test_zoom_and_pan_keep_positions(self, painting):
        page = painting.page
        page.mouse.move(painting.left + 100.5, painting.top + 80.5)
        page.mouse.wheel(0, -200)  # zooms about the pixel under the pointer
        painting.size(9)
        painting.drag((100, 80), (100, 80))
        same(painting.mask(), disc(100, 80, 9))
        page.keyboard.press("Control+z")
        page.mouse.move(painting.left + 100.5, painting.top + 80.5)
        page.mouse.down(button="middle")
        page.mouse.move(painting.left + 140.5, painting.top + 95.5)
        page.mouse.up(button="middle")
        painting.drag((140, 95), (140, 95))
        same(painting.mask(), disc(100, 80, 9))

    def test_two_fingers_zoom_and_do_not_draw(self, start, tmp_path):
        painting = Painting(start(has_touch=True), jpeg(tmp_path))
        session = painting.page.context.new_cdp_session(painting.page)

        def touch(kind, *points):
            at = [
                {"x": painting.left + x + 0.5, "y": painting.top + y + 0.5, "id": i} for i, (x, y) in enumerate(points)
            ]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

        touch("touchStart", (100, 100))
        touch("touchStart", (100, 100), (200, 100))
        touch("touchMove", (50, 100), (250, 100))  # twice as far apart, about (150, 100)
        touch("touchEnd", (50, 100))
        touch("touchEnd")
        assert not painting.mask().any()
        painting.size(9)
        painting.drag((190, 120), (190, 120))
        same(painting.mask(), disc(170, 110, 9))


class TestFill:
    def test_saved_pixels_are_those_of_the_command_line(self, start, tmp_path, generator):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 8, "a description"
        photo = jpeg(tmp_path, (HEIGHT, WIDTH), exif=exif, icc_profile=b"profile")  # upright: 320 x 240
        painting = Painting(start(), photo)
        painting.tool("rectangle")
        painting.drag((100, 60), (160, 110))
        painting.fill()
        saved, mask = painting.save("save"), painting.save("save-mask")
        same(np.asarray(Image.open(io.BytesIO(mask))), (abs(ACROSS - 130) <= 30) & (abs(DOWN - 85) <= 25))
        (tmp_path / "mask.png").write_bytes(mask)
        generator.save_pretrained(tmp_path / "model")
        output = tmp_path / "out.jpg"
        paths = ["--image", str(photo), "--mask", str(tmp_path / "mask.png"), "--output", str(output)]
        assert main(["inpaint", "--model", str(tmp_path / "model"), "--device", "cpu", *paths]) == 0
        assert saved == output.read_bytes()
        masked = np.asarray(Image.open(io.BytesIO(painting.save("save-masked"))).convert("RGB"))
        hole = np.asarray(Image.open(io.BytesIO(mask))) > 0
        assert (masked[hole] == 255).all()
        assert (masked[~hole] != 255).any()

    def test_undo_redo_and_again(self, painting):
        painting.tool("rectangle")
        opened = painting.save("save")
        painting.drag((20, 20), (60, 60))
        drawn = painting.mask()
        painting.fill()
        once = painting.save("save")
        painting.page.keyboard.press("Control+z")
        same(painting.mask(), drawn > 0)
        assert painting.save("save") == opened
        painting.page.keyboard.press("Control+Shift+z")
        assert painting.save("save") == once
        painting.drag((200, 100), (240, 160))
        painting.fill()
        twice = painting.save("save")
        before, after = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (once, twice))
        assert abs(before - after)[100:161, 200:241].mean() > 5
        assert abs(before - after)[:90].mean() < 0.5  # JPEG
        painting.page.click("#undo")
        painting.page.click("#undo")
        painting.page.click("#undo")
        painting.page.click("#undo")
        assert painting.page.is_disabled("#undo")
        assert painting.save("save") == opened

    def test_a_fill_that_is_not_saved_is_not_lost_unasked(self, painting, tmp_path):
        page, asked = painting.page, []

        def open_another(answer):
            page.once("dialog", lambda dialog: asked.append(dialog.type) or getattr(dialog, answer)())
            page.set_input_files("#file", jpeg(tmp_path, (64, 48), "other.jpg"))

        painting.tool("rectangle")
        painting.drag((20, 20), (60, 60))
        painting.fill()
        open_another("dismiss")
        playwright.expect(page.locator("#status")).to_contain_text("Filled")
        page.once("dialog", lambda dialog: asked.append(dialog.type) or dialog.dismiss())
        page.evaluate("setTimeout(() => location.reload())")
        page.wait_for_timeout(300)
        assert asked == ["confirm", "beforeunload"]
        painting.save("save")
        page.set_input_files("#file", jpeg(tmp_path, (64, 48), "other.jpg"))  # saved: nothing is asked
        playwright.expect(page.locator("#status")).to_contain_text("other.jpg")
        assert len(asked) == 2

    def test_after_each_stroke(self, painting):
        painting.page.check("#auto")
        painting.drag((100, 100), (120, 100))
        playwright.expect(painting.page.locator("#status")).to_contain_text("Filled")
        painting.idle()
        assert painting.page.is_disabled("#fill")
        assert painting.mask().any()  # what was filled

    def test_compare(self, painting):
        page = painting.page
        assert page.is_disabled("#compare")
        painting.tool("rectangle")
        painting.drag((20, 20), (300, 200))
        painting.page.mouse.move(5, 5)

        def shown():
            page.wait_for_timeout(150)  # a frame
            return np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")).astype(int)

        page.click("#clear")
        original = shown()
        page.click("#undo")
        painting.fill()
        page.mouse.move(5, 5)
        filled = shown()
        assert abs(filled - original).mean() > 1
        page.focus("#canvas")
        page.keyboard.down("c")
        np.testing.assert_array_equal(shown()[50:-50, 50:-50], original[50:-50, 50:-50])
        page.keyboard.up("c")
        page.evaluate("compare.value = 50; compare.dispatchEvent(new Event('input'))")
        middle, half = original.shape[1] // 2, shown()
        np.testing.assert_array_equal(half[50:-50, 50 : middle - 3], original[50:-50, 50 : middle - 3])
        np.testing.assert_array_equal(half[50:-50, middle + 3 : -50], filled[50:-50, middle + 3 : -50])

    def test_structure(self, painting):
        """Edges are drawn black on white, gradients light on black, in the hole alone."""
        page, found = painting.page, {}
        painting.tool("rectangle")
        painting.drag((20, 20), (100, 80))
        page.mouse.move(5, 5)
        for kind in ("picture", "edges", "gradients"):
            page.select_option("#show", kind)
            if kind != "picture":
                playwright.expect(page.locator("#status")).to_have_text(f"Predicted {kind}.")
            painting.idle()
            assert page.input_value("#show") == kind
            page.wait_for_timeout(150)  # a frame
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            corner = round(painting.left), round(painting.top)
            found[kind] = np.asarray(shot.crop((*corner, corner[0] + WIDTH, corner[1] + HEIGHT))).astype(int)
        hole = (abs(ACROSS - 60) <= 42) & (abs(DOWN - 50) <= 32)  # and a pixel around it
        inner = (abs(ACROSS - 60) <= 38) & (abs(DOWN - 50) <= 28)
        for kind in ("edges", "gradients"):
            differs = (found[kind] != found["picture"]).any(-1)
            assert not differs[~hole].any()
            assert differs[inner].mean() > 0.9
        painting.fill()
        assert page.input_value("#show") == "picture"
        assert page.is_enabled("#show")

    def test_cancel_and_errors(self, painting):
        page = painting.page
        page.route("**/api/v1/inpaint", lambda route: None)  # never answered
        painting.tool("rectangle")
        painting.drag((20, 20), (100, 80))
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#busy")).to_be_visible()
        page.keyboard.press("Escape")
        playwright.expect(page.locator("#status")).to_have_text("Cancelled.")
        page.unroute("**/api/v1/inpaint")
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"nothing"})
        playwright.expect(page.locator("#error")).to_contain_text("no picture that can be read")
        page.click("#clear")
        painting.tool("rectangle")
        painting.drag((-10, -10), (400, 400))
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#error")).to_contain_text("covers the whole picture")
        page.keyboard.press("Control+z")
        same(painting.mask(), np.zeros((HEIGHT, WIDTH), bool))

    def test_12_megapixels(self, start, tmp_path, generator):
        photo = jpeg(tmp_path, (4000, 3000))
        page = start()
        page.set_input_files("#file", photo)
        playwright.expect(page.locator("#status")).to_contain_text("4000 × 3000")
        hole = np.zeros((3000, 4000), np.uint8)
        hole[1000:1100, 2000:2150] = 255
        Image.fromarray(hole).save(tmp_path / "mask.png")
        page.set_input_files("#mask-file", tmp_path / "mask.png")
        playwright.expect(page.locator("#status")).to_have_text("Mask loaded.")
        page.focus("#canvas")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#status")).to_contain_text("Filled")
        with page.expect_download() as download:
            page.click("#save")
        saved = np.asarray(Image.open(download.value.path())).astype(int)
        before = np.asarray(Image.open(photo)).astype(int)
        assert abs(saved - before)[hole > 0].mean() > 5
        assert abs(saved - before)[hole == 0].mean() < 1


class TestPage:
    def test_sample_drop_and_paste(self, start, tmp_path):
        page = start()
        page.click("#sample-2")
        playwright.expect(page.locator("#status")).to_contain_text("sample.jpg, 640 × 427")
        give = """([kind, property, bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(bytes)], name, {type: "image/jpeg"}));
            dispatchEvent(kind === "drop" ? new DragEvent(kind, {dataTransfer: data, cancelable: true})
                                          : new ClipboardEvent(kind, {clipboardData: data, cancelable: true}));
        }"""
        for kind in ("drop", "paste"):
            photo = jpeg(tmp_path, (64, 48), f"{kind}.jpg")
            page.evaluate(give, [kind, "", list(photo.read_bytes()), photo.name])
            playwright.expect(page.locator("#status")).to_contain_text(f"{kind}.jpg, 64 × 48")

    def test_menu_and_wrong_files(self, start, tmp_path):
        page = start()
        menu = page.locator("#more .menu")
        for leave in (lambda: page.keyboard.press("Escape"), lambda: page.mouse.click(500, 650)):
            page.click("#more summary")
            playwright.expect(menu).to_be_visible()
            leave()
            playwright.expect(menu).to_be_hidden()
        page.evaluate("""() => {
            const data = new DataTransfer();
            data.items.add(new File(["text"], "notes.txt", {type: "text/plain"}));
            dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
        }""")
        playwright.expect(page.locator("#error")).to_have_text("notes.txt is no picture.")

    def test_tiff_which_browsers_do_not_show(self, start, tmp_path):
        page = start()
        page.set_input_files("#file", jpeg(tmp_path, (64, 48), "photo.tif"))
        playwright.expect(page.locator("#status")).to_contain_text("photo.tif, 64 × 48")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1000, 390])
    def test_accessibility(self, start, tmp_path, scheme, width):
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        page = start(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 700})
        for prepare in (page.reload, partial(Painting, page, jpeg(tmp_path)), partial(page.keyboard.press, "?")):
            prepare()
            violations = axe.run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_theme(self, start, scheme):
        page = start(color_scheme=scheme)
        colors = {"light": "rgb(244, 245, 247)", "dark": "rgb(20, 22, 26)"}
        other = "dark" if scheme == "light" else "light"
        for shown in (scheme, other, scheme):
            playwright.expect(page.locator("body")).to_have_css("background-color", colors[shown])
            page.click("#theme")

    def test_token(self, browser, generator):
        with running(generator, Settings(token="a-secret-token")) as (server, _):
            page = browser.new_page()
            page.goto(server.address)
            assert page.url.endswith("/")  # the token has left the address bar
            page.click("#sample-2")
            playwright.expect(page.locator("#status")).to_contain_text("sample.jpg")
            page.keyboard.press("r")
            box = page.locator("#canvas").bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x + 20, y + 20)
            page.mouse.up()
            page.keyboard.press("Enter")
            playwright.expect(page.locator("#status")).to_contain_text("Filled")
            page.close()

    def test_docs(self, start, address):
        page = start()
        page.goto(f"{address}/docs")
        for path in ("inpaint", "structure", "convert", "health", "progress"):
            playwright.expect(page.locator("#routes")).to_contain_text(f"/api/v1/{path}")
