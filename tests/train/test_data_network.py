"""Images from the network: a host that does not answer, a download that breaks, a cache in vain."""

import socket
import time

import pytest

from jaxclip.train import data
from jaxclip.train.data import sources, tfds_mnist
from jaxclip.train.errors import UserError

# The original, before a fixture replaces it to keep the tests off the network.
connection_trouble = sources.connection_trouble


def test_failed_download_falls_back_with_the_reason(monkeypatch):
    def broken(name, cache, originals):
        raise RuntimeError("the line went dead\nlong story")

    monkeypatch.setattr(sources, "connection_trouble", lambda url: None)
    monkeypatch.setattr(tfds_mnist, "prepare", broken)
    assert "(the line went dead)" in data.load().source
    with pytest.raises(UserError, match="the line went dead"):
        data.load("mnist")


def test_silent_host_does_not_hang():
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        trouble = connection_trouble(f"http://127.0.0.1:{server.getsockname()[1]}/", 0.2)
        assert time.monotonic() - start < 2
    assert "timed out" in trouble or "no answer" in trouble


def test_silent_name_server_does_not_hang(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    start = time.monotonic()
    assert connection_trouble("http://example.invalid/", 0.2) == "no answer within 0.2 s"
    assert time.monotonic() - start < 2
