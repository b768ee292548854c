"""A running painter for tests and screenshots."""

import threading
from contextlib import contextmanager

from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.serve.server import Server


@contextmanager
def running(generator, settings):
    """A server on a port of this machine, in a thread; gives it and its address."""
    server = Server(Inpainter(generator, "cpu"), settings, port=0)
    thread = threading.Thread(target=server.run, kwargs={"open_browser": False})
    thread.start()
    try:
        yield server, server.address.rstrip("/")
    finally:
        server.stop()
        thread.join()
