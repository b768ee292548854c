"""The painter's server: it gives what the command line gives, and keeps within its limits."""

import base64
import io
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx")

from fastapi.testclient import TestClient

import fastinpaint
from fastinpaint.cli import main
from fastinpaint.data.masks import dilate
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.serve.app import create_app
from fastinpaint.serve.metrics import resident_memory
from fastinpaint.serve.settings import Settings
from fastinpaint.serve.worker import Cancelled, Job, SharedGenerator, Worker
from tests.helpers.painter_server import running
from tests.helpers.painter_soak import Soak
from tests.helpers.painter_soak import photo as random_photo

LOCAL = "http://127.0.0.1:7860"


def png(pixels, **kept):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **kept)
    return file.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def files(image, mask):
    return {"image": ("a.png", image), "mask": ("b.png", mask)}


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return InpaintGenerator(2, head_norm=False)


@pytest.fixture(scope="module")
def model(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    generator.save_pretrained(folder)
    return folder


@pytest.fixture
def serve(generator):
    clients = []

    def start(**settings):
        app = create_app(Inpainter(generator, "cpu"), Settings(**settings))
        client = TestClient(app, base_url=LOCAL, raise_server_exceptions=False).__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve):
    return serve()


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    hole = np.zeros((32, 48), np.uint8)
    hole[8:20, 10:30] = 255
    return png(pixels), png(hole)


class TestSameAsTheCommandLine:
    @pytest.mark.parametrize(("suffix", "name"), [("png", "png"), ("jpg", "jpeg"), ("webp", "webp")])
    @pytest.mark.parametrize("size", [(32, 48), (300, 560)])
    def test_byte_for_byte(self, client, model, tmp_path, suffix, name, size):
        pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        hole = np.zeros(size, np.uint8)
        hole[8:20, 10:30] = 255
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        image = tmp_path / f"photo.{suffix}"
        Image.fromarray(pixels).save(image, exif=exif, icc_profile=b"profile")
        mask = tmp_path / "mask.png"
        Image.fromarray(np.ascontiguousarray(np.rot90(hole, -1))).save(mask)  # orientation 6 turns clockwise
        output = tmp_path / f"out.{suffix}"
        paths = ["--image", str(image), "--mask", str(mask), "--output", str(output)]
        assert main(["inpaint", "--model", str(model), "--device", "cpu", *paths]) == 0
        found = client.post("/api/v1/inpaint", files=files(image.read_bytes(), mask.read_bytes()))
        assert (found.status_code, found.headers["content-type"]) == (200, f"image/{name}")
        assert found.content == output.read_bytes()

    def test_answers_say_where_the_time_went(self, client, photo):
        found = client.post("/api/v1/inpaint", files=files(*photo)).headers["server-timing"]
        parts = dict(part.split(";dur=") for part in found.split(", "))
        assert list(parts) == ["read", "fill", "encode"]
        assert all(float(milliseconds) >= 0 for milliseconds in parts.values())

    def test_options(self, client, generator):
        pixels = np.random.default_rng(2).integers(0, 256, (300, 320, 3), dtype=np.uint8)
        hole = np.zeros((300, 320), bool)
        hole[100:150, 100:150] = True
        wanted = Inpainter(generator, "cpu", 64, "resize")(pixels, hole)
        data = {"strategy": "resize", "max_side": "64", "invert_mask": "true", "format": "bmp"}
        found = client.post("/api/v1/inpaint", files=files(png(pixels), png(~hole)), data=data)
        assert found.headers["content-type"] == "image/bmp"
        np.testing.assert_array_equal(pixels_of(found.content), wanted)

    @pytest.mark.parametrize("route", ["inpaint", "structure"])
    def test_holes_grow(self, client, photo, route):
        """As by ``fastinpaint inpaint --mask-dilate``, after ``--invert-mask``."""
        image, mask = photo
        grown = dilate(pixels_of(mask) // 255, 3) * 255
        wanted = client.post(f"/api/v1/{route}", files=files(image, png(grown)))
        data = {"mask_dilate": "3", "invert_mask": "true"}
        found = client.post(f"/api/v1/{route}", files=files(image, png(255 - pixels_of(mask))), data=data)
        assert found.content == wanted.content
        assert found.content != client.post(f"/api/v1/{route}", files=files(*photo)).content

    def test_json(self, client, photo):
        image, mask = (base64.b64encode(data).decode() for data in photo)
        found = client.post("/api/v1/inpaint", json={"image": image, "mask": mask}).json()
        assert (found["format"], found["width"], found["height"]) == ("png", 48, 32)
        assert base64.b64decode(found["image"]) == client.post("/api/v1/inpaint", files=files(*photo)).content

    def test_what_took_the_time_is_told(self, client, photo):
        parts = client.post("/api/v1/inpaint", files=files(*photo)).headers["server-timing"]
        assert re.fullmatch(r"read;dur=\d+\.\d, fill;dur=\d+\.\d, encode;dur=\d+\.\d", parts)
        parts = client.post("/api/v1/convert", files={"image": ("a.png", photo[0])}).headers["server-timing"]
        assert re.fullmatch(r"read;dur=\d+\.\d, encode;dur=\d+\.\d", parts)

    def test_convert_by_way_of_png_changes_nothing(self, client, photo):
        """The page fills in PNG and writes the photo's format once, at the end."""
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x010E] = "a description"
        Image.open(io.BytesIO(photo[0])).save(file, "JPEG", exif=exif, icc_profile=b"profile")
        direct = client.post("/api/v1/inpaint", files=files(file.getvalue(), photo[1]))
        data = {"format": "png", "draft": "true"}
        lossless = client.post("/api/v1/inpaint", files=files(file.getvalue(), photo[1]), data=data)
        found = client.post("/api/v1/convert", files={"image": ("x", lossless.content)}, data={"format": "jpeg"})
        assert found.content == direct.content


class TestStructure:
    def test_gradients_of_the_pass(self, generator):
        pixels = np.random.default_rng(3).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        hole = np.zeros((40, 48), bool)
        hole[8:20, 10:30] = True
        found = []
        handle = generator.register_forward_hook(lambda _, __, output: found.append(output))
        inpainter = Inpainter(generator, "cpu")
        ((box, gradients),) = inpainter.structure(Image.fromarray(pixels), hole)
        inpainter(pixels, hole)
        handle.remove()
        assert tuple(box) == (0, 40, 0, 48)
        assert gradients.shape == (6, 40, 48)
        torch.testing.assert_close(gradients, found[1].gradients[0][0, :, :40, :48], rtol=1e-4, atol=1e-4)

    def test_regions_of_a_large_picture(self, generator):
        hole = np.zeros((300, 900), bool)
        hole[10:20, 10:20] = hole[250:260, 850:860] = True
        found = Inpainter(generator, "cpu").structure(Image.new("RGB", (900, 300)), hole)
        assert len(found) == 2
        assert all(gradients.shape == (6, *box.sides) for box, gradients in found)
        assert Inpainter(generator, "cpu").structure(Image.new("RGB", (900, 300)), hole & False) == []

    @pytest.mark.parametrize("kind", ["edges", "gradients"])
    def test_drawn_in_the_hole_only(self, client, photo, kind):
        found = client.post("/api/v1/structure", files=files(*photo), data={"kind": kind})
        drawn = pixels_of(found.content)
        np.testing.assert_array_equal(drawn[..., 3], pixels_of(photo[1]))
        assert drawn[..., :3].any()


class TestRefusals:
    @pytest.mark.parametrize(
        ("image", "mask", "status", "reason"),
        [
            (b"", None, 400, "the image is no picture"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", None, 400, "the image is no picture"),
            (None, b"GIF89a", 400, "the mask is no picture"),
            (png(np.zeros((64, 64, 3), np.uint8))[:70], None, 400, "the image cannot be read"),
            (None, png(np.eye(16, dtype=np.uint8) * 255), 422, "height and width 32x48, got 16x16"),
            (None, png(np.zeros((32, 48), np.uint8)), 422, "marks no hole"),
            (None, png(np.full((32, 48), 255, np.uint8)), 422, "covers the whole picture"),
        ],
    )  # fmt: skip
    def test_pictures(self, client, photo, image, mask, status, reason):
        found = client.post("/api/v1/inpaint", files=files(image or photo[0], mask or photo[1]) if image != b"" else
                            files(b"", photo[1]))  # fmt: skip
        assert found.status_code == status
        assert reason in found.json()["detail"]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            ({"strategy": "magic"}, "strategy"),
            ({"max_side": "-1"}, "max_side"),
            ({"mask_dilate": "257"}, "mask_dilate"),
            ({"mask_dilate": "40"}, "covers the whole picture, nothing known is left: mask_dilate 40 grew it"),
            ({"format": "../../etc/passwd"}, "format"),
            ({"output": "elsewhere.png"}, "output"),
        ],
    )
    def test_options(self, client, photo, data, reason):
        found = client.post("/api/v1/inpaint", files=files(*photo), data=data)
        assert found.status_code == 422
        assert reason in found.json()["detail"]

    def test_bodies(self, client):
        send = client.post
        assert send("/api/v1/inpaint", content=b"x").status_code == 415
        assert send("/api/v1/inpaint", content=b"{", headers={"content-type": "application/json"}).status_code == 400
        assert send("/api/v1/inpaint", json=[1]).status_code == 422
        assert send("/api/v1/inpaint", json={"image": "!", "mask": ""}).status_code == 422
        headers = {"content-type": "multipart/form-data"}
        assert send("/api/v1/inpaint", content=b"--x\r\n", headers=headers).status_code == 400
        assert send("/api/v1/inpaint", data={"image": "a", "mask": "b"}).status_code == 415

    def test_too_many_bytes(self, serve, photo):
        client = serve(max_upload=2000)
        assert client.post("/api/v1/inpaint", files=files(b"x" * 3000, b"")).status_code == 413
        pieces = (b"x" * 500 for _ in range(10))  # no Content-Length
        found = client.post("/api/v1/inpaint", content=pieces, headers={"content-type": "application/json"})
        assert found.status_code == 413
        assert "2000 bytes" in found.json()["detail"]

    def test_too_many_pixels(self, serve, photo):
        client = serve(max_pixels=1000)
        found = client.post("/api/v1/inpaint", files=files(*photo))
        assert (found.status_code, "1536" in found.json()["detail"]) == (413, True)

    @pytest.mark.parametrize("side", [8_000, 30_000])
    def test_bombs_are_not_decoded(self, client, photo, side):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        pixels = zlib.compress(bytes(min(side * (side + 1), 10**6)))
        chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
        body = b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
        before = resident_memory()
        for image, mask in ((b"\x89PNG\r\n\x1a\n" + body, photo[1]), (photo[0], b"\x89PNG\r\n\x1a\n" + body)):
            assert client.post("/api/v1/inpaint", files=files(image, mask)).status_code == 413
        assert resident_memory() - before < 20 * 2**20

    def test_whole_large_pictures(self, client):
        image = png(np.zeros((1100, 1000), np.uint8))
        found = client.post("/api/v1/inpaint", files=files(image, image), data={"strategy": "original"})
        assert found.status_code == 413


class TestGuard:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("127.0.0.1:7860", 200),
            ("[::1]:80", 200),
            ("evil.example", 403),
            ("127.0.0.1.nip.io", 403),
            ("localhost.evil.example:7860", 403),
        ],
    )
    def test_host(self, client, host, status):
        assert client.get("/api/v1/health", headers={"host": host}).status_code == status

    @pytest.mark.parametrize(
        ("origin", "status"), [(LOCAL, 200), ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:1", 403)]
    )
    def test_origin(self, client, origin, status):
        found = client.get("/api/v1/health", headers={"origin": origin})
        assert found.status_code == status
        assert "access-control-allow-origin" not in found.headers

    def test_token(self, serve, photo):
        client = serve(host="0.0.0.0", token="a secret token")
        for header in ({}, {"authorization": "Bearer another"}, {"authorization": "Bearer \xff".encode("latin-1")}):
            found = client.post("/api/v1/inpaint", files=files(*photo), headers=header)
            assert found.status_code == 401
            assert client.get("/metrics", headers=header).status_code == 401
        header = {"authorization": "Bearer a secret token", "host": "painter.example"}
        assert client.post("/api/v1/inpaint", files=files(*photo), headers=header).status_code == 200
        assert client.get("/", headers={"host": "painter.example"}).status_code == 200

    @pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "painter.example", "::"])
    def test_other_hosts_want_a_token(self, host):
        with pytest.raises(ValueError, match="--token"):
            Settings(host=host)

    @pytest.mark.parametrize("path", ["/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/app.py", "/page/index"])
    def test_names_are_no_paths(self, client, path):
        assert client.get(path).status_code == 404

    def test_headers(self, client):
        found = client.get("/")
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert found.headers["x-content-type-options"] == "nosniff"

    def test_page_is_small_and_asks_nobody_else(self, client):
        page = sorted((Path(fastinpaint.__file__).parent / "serve" / "page").iterdir())
        assert sum(file.stat().st_size for file in page) < 150_000
        for file in page:
            assert client.get(f"/page/{file.name}").content == file.read_bytes()
            if file.suffix != ".jpg":
                text = file.read_text().replace("http://www.w3.org/2000/svg", "")
                assert "//" not in re.sub(r"//[ A-Z].*", "", text), f"{file.name} names another host"


class TestQueue:
    """One request at a time is worked on, others may wait."""

    @pytest.fixture
    def slow(self, serve, monkeypatch):
        """Starts a server whose generator waits for `gate`, after it has released `reached`."""
        gate, reached = threading.Event(), threading.Semaphore(0)

        def start(**settings):
            client = serve(**settings, timeout=60)
            generator = client.app.state.service.painter.generator.generator
            forward = generator.forward

            def wait(inputs):
                reached.release()
                assert gate.wait(60)
                return forward(inputs)

            monkeypatch.setattr(generator, "forward", wait)
            return client, gate, reached

        yield start
        gate.set()

    def test_full(self, slow, photo):
        client, gate, reached = slow(queue=1)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.post, "/api/v1/inpaint", files=files(*photo), headers={"X-Request-ID": "a" * 8})
            reached.acquire(timeout=60)
            second = pool.submit(client.post, "/api/v1/inpaint", files=files(*photo), headers={"X-Request-ID": "b" * 8})
            while client.get("/api/v1/progress/bbbbbbbb").status_code == 404:
                pass
            assert client.get("/api/v1/progress/bbbbbbbb").json() == {
                "state": "waiting", "ahead": 1, "passes": 0, "expected": 0,
            }  # fmt: skip
            assert client.get("/api/v1/progress/aaaaaaaa").json() == {
                "state": "running", "ahead": 0, "passes": 0, "expected": 1,
            }  # fmt: skip
            third = client.post("/api/v1/inpaint", files=files(*photo))
            assert third.status_code == 429
            assert int(third.headers["retry-after"]) >= 1
            text = client.get("/metrics").text
            assert 'fastinpaint_jobs{state="waiting"} 1' in text
            assert 'fastinpaint_jobs{state="running"} 1' in text
            gate.set()
            assert {first.result().status_code, second.result().status_code} == {200}
        assert client.post("/api/v1/inpaint", files=files(*photo)).status_code == 200  # the places are free again
        text = client.get("/metrics").text
        assert 'fastinpaint_jobs_total{result="done"} 3' in text
        assert 'fastinpaint_requests_total{route="/api/v1/inpaint",status="429"} 1' in text

    def test_eight_wait_by_default(self, slow, photo):
        client, gate, reached = slow()
        with ThreadPoolExecutor(9) as pool:
            requests = [pool.submit(client.post, "/api/v1/inpaint", files=files(*photo)) for _ in range(9)]
            reached.acquire(timeout=60)
            while client.app.state.service.worker.counts() != (8, 1):
                assert not any(request.done() for request in requests)  # none is refused
            assert client.post("/api/v1/inpaint", files=files(*photo)).status_code == 429
            gate.set()
            assert {request.result().status_code for request in requests} == {200}

    def test_time_is_up(self, serve, photo, monkeypatch):
        client = serve(timeout=0.05)
        generator = client.app.state.service.painter.generator.generator
        forward, job = generator.forward, client.app.state.service.worker
        tried = threading.Event()

        def wait(inputs):  # until the job is cancelled
            tried.wait(1)
            return forward(inputs)

        monkeypatch.setattr(generator, "forward", wait)
        found = client.post("/api/v1/inpaint", files=files(*photo))
        assert (found.status_code, found.json()["detail"]) == (503, "the time of 0.05 seconds was up")
        assert job.counts() == (0, 0)

    def test_a_client_that_leaves_frees_its_place(self, generator, photo, monkeypatch):
        with running(generator, Settings(queue=1)) as (server, address):
            service = server.app.state.service
            shared = service.painter.generator.generator
            gate, reached, forward = threading.Event(), threading.Event(), shared.forward

            def wait(inputs):
                reached.set()
                assert gate.wait(60)
                return forward(inputs)

            monkeypatch.setattr(shared, "forward", wait)
            request = httpx.Request("POST", f"{address}/api/v1/inpaint", files=files(*photo))
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            with socket.create_connection(("127.0.0.1", request.url.port)) as connection:
                connection.sendall(f"POST /api/v1/inpaint HTTP/1.1\r\n{head}\r\n".encode() + request.read())
                assert reached.wait(60)
            gate.set()
            while service.worker.counts() != (0, 0):
                pass
            monkeypatch.setattr(shared, "forward", forward)
            assert httpx.post(f"{address}/api/v1/inpaint", files=files(*photo), timeout=60).status_code == 200
            assert 'fastinpaint_jobs_total{result="cancelled"} 1' in httpx.get(f"{address}/metrics").text

    def test_slow_clients(self, generator):
        with running(generator, Settings(body_timeout=0.2)) as (_, address):
            port = httpx.URL(address).port
            with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:
                assert silent.recv(100) == b""
            with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
                slow.sendall(b"POST /api/v1/inpaint HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
                slow.sendall(b"Content-Length: 100\r\n\r\n{")
                assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
            assert httpx.get(f"{address}/api/v1/health").status_code == 200


class TestWorker:
    def test_calls_of_one_size_share_a_pass(self, generator):
        gate, reached, sizes = threading.Event(), threading.Event(), []

        class Slow(torch.nn.Module):
            def forward(self, inputs):
                reached.set()
                assert gate.wait(60)
                sizes.append(len(inputs))
                return generator(inputs)

        shared = SharedGenerator(Slow(), batch_size=3)
        inputs = [torch.rand(1, 11, 16, 16 * (1 + (i == 2))) for i in range(6)]
        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(shared, inputs[0])]
            assert reached.wait(60)
            futures += [pool.submit(shared, x) for x in inputs[1:]]
            while shared._queue.qsize() < 5:
                pass
            gate.set()
            found = [future.result() for future in futures]
        shared.close()
        assert sorted(sizes) == [1, 1, 1, 3]
        with torch.no_grad():
            for output, x in zip(found, inputs, strict=True):
                torch.testing.assert_close(output, generator(x))

    def test_errors_reach_the_caller_and_the_thread_lives_on(self, generator):
        shared = SharedGenerator(generator, 1)
        with pytest.raises(ValueError, match="11"):
            shared(torch.rand(1, 3, 16, 16))
        assert shared(torch.rand(1, 11, 16, 16)).images[0].shape == (1, 3, 16, 16)
        shared.close()

    def test_cancelled_jobs_stop_before_the_next_pass(self, generator):
        shared, worker = SharedGenerator(generator, 1), Worker(1)

        def work(job):
            shared(torch.rand(1, 11, 16, 16))
            job.cancel()
            shared(torch.rand(1, 11, 16, 16))

        with pytest.raises(Cancelled):
            worker.submit(Job(work)).result()
        assert shared.passes == 1
        worker.close()
        shared.close()


def test_many_clients(generator):
    with running(generator, Settings(queue=4)) as (server, address):
        answers = Soak(address).run(clients=12, requests=6)
        assert sum(answers.values()) == 72
        assert set(answers) <= {200, 400, 429, "left"}
        assert answers[200] > 0
        service = server.app.state.service
        while service.worker.counts() != (0, 0) or service._admitted:  # those whose clients left
            pass
        assert (
            httpx.post(f"{address}/api/v1/inpaint", files=random_photo(random.Random(0), 48), timeout=60).status_code
            == 200
        )


class TestProcess:
    """`fastinpaint serve` as users start it."""

    @contextmanager
    def started(self, model, folder, port=0):
        command = [sys.executable, "-m", "fastinpaint", "serve", "--model", str(model), "--device", "cpu"]
        process = subprocess.Popen(
            [*command, "--port", str(port), "--no-browser"],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)},
        )  # fmt: skip
        try:
            yield process, process.stderr.readline().split()[-1].rstrip("/")
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    @staticmethod
    def long_request(address):
        """Start a request of several passes; return its future once it is being worked on."""
        pixels, hole = np.zeros((900, 900, 3), np.uint8), np.zeros((900, 900), np.uint8)
        hole[200:700, 200:700] = 255
        pool = ThreadPoolExecutor(1)
        future = pool.submit(
            httpx.post, f"{address}/api/v1/inpaint", files=files(png(pixels), png(hole)),
            headers={"X-Request-ID": "long-request"}, timeout=300,
        )  # fmt: skip
        pool.shutdown(wait=False)
        while not future.done():
            found = httpx.get(f"{address}/api/v1/progress/long-request", timeout=60)
            if found.status_code == 200 and found.json()["passes"]:
                break
        return future

    def test_kill_and_stop(self, model, tmp_path):
        folder = tmp_path / "temporary"
        folder.mkdir()
        with self.started(model, folder) as (process, address):
            future = self.long_request(address)
            process.kill()
            assert isinstance(future.exception(), httpx.HTTPError)
        assert not list(folder.iterdir())
        with self.started(model, folder, httpx.URL(address).port) as (process, again):
            assert again == address
            future = self.long_request(address)
            process.send_signal(signal.SIGTERM)
            assert future.result().status_code == 200
            process.wait(60)
        assert not list(folder.iterdir())

    def test_the_command_line_has_the_defaults_of_the_settings(self, model, monkeypatch):
        seen = []

        def server(inpainter, settings, port):
            seen.append((settings, port))
            return SimpleNamespace(address="", run=lambda open_browser: None)

        monkeypatch.delenv("FASTINPAINT_TOKEN", raising=False)
        monkeypatch.setattr("fastinpaint.serve.server.Server", server)
        assert main(["serve", "--model", str(model), "--device", "cpu"]) == 0
        assert seen == [(Settings(), 7860)]

    def test_errors_of_users(self, model, capsys):
        assert main(["serve", "--model", str(model), "--host", "0.0.0.0"]) == 1
        assert "--token" in capsys.readouterr().err
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            assert main(["serve", "--model", str(model), "--device", "cpu", "--port", port]) == 1
        assert "in use" in capsys.readouterr().err
