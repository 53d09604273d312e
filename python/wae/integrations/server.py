"""Serves the page of ``wae app``, and keeps browsers from exchanging anything with other hosts.

Uploads stay in a folder that is removed when the server ends.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

import gradio as gr
import safehttpx
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wae.experiments import answers
from wae.models.autoencoder import AutoEncoder

from .page import CSS, MAX_PIXELS, build

MAX_BYTES = 64 * 2**20
"""The most bytes of an uploaded file."""

_FONTS = gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")
_FIXED_WIDTH = gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")


def serve(
    model: AutoEncoder,
    asked: Sequence[answers.Candidate] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    max_pixels: int = MAX_PIXELS,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        model: the auto-encoder that decomposes the images.
        asked: the networks whose predictions are shown: see :func:`wae.experiments.answers.candidates`.
        host, port: the address to listen at; port 0 chooses a free one.
        max_pixels: an image with more pixels is refused.
        ready: called with the page's URL once the server listens.

    Raises:
        OSError: the server cannot listen at that address.
        KeyboardInterrupt: a signal has ended the server.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family) as listening,
        tempfile.TemporaryDirectory(prefix="wae-app-") as folder,
    ):
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        safehttpx.get = safehttpx.async_validate_url = _fetch_nothing
        page = build(model, asked, max_pixels)
        page.has_launched = True  # without it Gradio treats any path in a request as an uploaded file
        app = gr.mount_gradio_app(
            FastAPI(middleware=_middleware(host), openapi_url=None),
            page,
            path="",
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(font=_FONTS, font_mono=_FIXED_WIDTH),
            css=CSS,
        )
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        # An open page holds a connection, for which the shutdown must not wait.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = _Server(config, partial(ready, f"http://{shown}:{listening.getsockname()[1]}/"))
        server.run(sockets=[listening])
        if server.started:  # a signal has ended it; uvicorn's own exception may be lost on a busy machine
            raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """Calls ``ready`` when it listens. From then on signals set a flag instead of raising an exception."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a traceback for each open request
        await super().shutdown(sockets)


async def _fetch_nothing(address: str, *options: object, **more: object) -> NoReturn:
    """Replaces the functions with which Gradio fetches a URL that a request names instead of an upload."""
    raise PermissionError(f"{address}: nothing is fetched from other hosts")


class _OwnHostOnly:
    """Tells browsers to load nothing from other hosts and to send nothing to them.

    A request that another host's page makes a browser send here, such as an upload, is refused (403):
    browsers say what kind of page sends a request. A link from there to this page works.
    """

    _POLICY = (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "  # Gradio's page and ours are inline
        "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            asked_by = Headers(scope=scope).get("sec-fetch-site", "none")  # missing: no or an old browser
            if asked_by not in ("same-origin", "none"):
                app = PlainTextResponse("only this page itself may send anything here", 403)
        await app(scope, receive, send_with_policy)


def _middleware(host: str) -> list[Middleware]:
    """If only this machine may connect, the host name is checked too, as a defence against DNS rebinding."""
    policy = Middleware(_OwnHostOnly)
    if not _is_loopback(host):
        return [policy]
    own = "[" if ":" in host else host  # Starlette cuts "[::1]:7860" at the first colon
    return [policy, Middleware(TrustedHostMiddleware, allowed_hosts=[own, "localhost"], www_redirect=False)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
