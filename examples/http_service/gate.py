"""What a request must pass before anybody looks at it: the API key, and the size of its body."""

from __future__ import annotations

import hmac

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from told import error_object, json_response


class Gate:
    """Refuses requests without the key (but for /health), and bodies that are too large, however they are sent."""

    def __init__(self, app: ASGIApp, api_key: str | None, most_bytes: int) -> None:
        self._app = app
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._most = most_bytes
        self._too_large = f"the body is larger than {most_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        key = headers.get(b"authorization", b"")
        if self._key is not None and scope["path"] != "/health" and not hmac.compare_digest(key, self._key):
            told = error_object("the API key is missing or wrong", "invalid_request_error", code="invalid_api_key")
            await json_response(told, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            told = error_object(self._too_large, "invalid_request_error", code="body_too_large")
            await json_response(told, 413, {"Connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise HTTPException(413, self._too_large)
            return message

        await self._app(scope, counted, send)
