"""A small read-only web server for the bucket ``docs``: Data Docs, dbt docs and reports, behind a password.

``/`` lists what there is; a folder shows its ``index.html``, or its listing. It holds an S3 identity that may only
read that bucket, so no path, however written, can lead elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import html
import mimetypes
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "docs"
CHUNK = 1 << 16
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>:root{{color-scheme:light dark}}
body{{font:16px/1.6 system-ui,sans-serif;max-width:48rem;margin:3rem auto;padding:0 1rem}}</style>
<h1>{title}</h1><ul>{items}</ul></html>"""


def application(client: S3Client, user: str, password: str) -> Starlette:
    """The web application over one bucket, for one person."""
    expected = f"{user}:{password}".encode()

    def allowed(header: str) -> bool:
        scheme, _, given = header.partition(" ")
        try:
            offered = base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and secrets.compare_digest(offered, expected)

    async def show(request: Request) -> Response:
        if not allowed(request.headers.get("authorization", "")):
            realm = {"WWW-Authenticate": 'Basic realm="Lyrebird", charset="UTF-8"'}
            return PlainTextResponse("Please sign in.\n", 401, headers=realm)
        return await run_in_threadpool(_answer, client, request.path_params["path"], request.method)

    async def guarded(request: Request) -> Response:
        response = await show(request)
        response.headers.update(HEADERS)
        return response

    handler: Callable[[Request], Awaitable[Response]] = guarded
    return Starlette(routes=[Route("/{path:path}", handler, methods=["GET", "HEAD"])])


def is_safe(path: str) -> bool:
    """Whether a path names something below the bucket's root, written plainly."""
    parts = path.rstrip("/").split("/")
    return not ({"", ".", ".."} & set(parts) and path) and not any(ord(sign) < 32 or sign == "\\" for sign in path)


def _answer(client: S3Client, path: str, method: str) -> Response:
    if not is_safe(path):
        return PlainTextResponse("No such page.\n", 404)
    if path and not path.endswith("/"):
        response = _object(client, path, method)
        if response:
            return response
        if _entries(client, f"{path}/"):
            return RedirectResponse(f"/{quote(path)}/")
        return PlainTextResponse("No such page.\n", 404)
    response = _object(client, f"{path}index.html", method)
    if response:
        return response
    entries = _entries(client, path)
    if path and not entries:
        return PlainTextResponse("No such page.\n", 404)
    return HTMLResponse(_listing(path, entries))


def _object(client: S3Client, key: str, method: str) -> Response | None:
    """The object as a response, or None when there is none."""
    try:
        if method == "HEAD":
            head = client.head_object(Bucket=BUCKET, Key=key)
            return Response(headers={"Content-Length": str(head["ContentLength"])}, media_type=content_type(key))
        found = client.get_object(Bucket=BUCKET, Key=key)
    except client.exceptions.ClientError as error:
        if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404", "NoSuchBucket"}:
            return None
        raise
    length = {"Content-Length": str(found["ContentLength"])}
    return StreamingResponse(found["Body"].iter_chunks(CHUNK), headers=length, media_type=content_type(key))


def content_type(key: str) -> str:
    """By the name's ending, as a browser expects it; text in UTF-8."""
    guessed = mimetypes.guess_type(key)[0] or "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


def _entries(client: S3Client, prefix: str) -> list[str]:
    """Names directly below a prefix, folders with a slash at the end."""
    names: set[str] = set()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix, Delimiter="/"):
        names |= {part["Prefix"].removeprefix(prefix) for part in page.get("CommonPrefixes", [])}
        names |= {item["Key"].removeprefix(prefix) for item in page.get("Contents", [])}
    return sorted(names - {""})


def _listing(prefix: str, entries: list[str]) -> str:
    title = prefix.rstrip("/") or "Lyrebird: documentation and reports"
    items = [f'<li><a href="{quote(name)}">{html.escape(name)}</a>' for name in entries]
    if prefix:
        items.insert(0, '<li><a href="../">..</a>')
    return PAGE.format(title=html.escape(title), items="".join(items) or "<li>Nothing has been written yet.")


def main() -> None:
    import boto3
    import uvicorn
    from botocore.config import Config

    env = os.environ
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=env["PAGES_S3_ENDPOINT"],
        aws_access_key_id=env["PAGES_S3_ACCESS_KEY"],
        aws_secret_access_key=env["PAGES_S3_SECRET_KEY"],
        region_name=env["PAGES_S3_REGION"],
        config=Config(connect_timeout=5, read_timeout=30, s3={"addressing_style": "path"}, proxies={}),
    )
    app = application(client, env["PAGES_USER"], env["PAGES_PASSWORD"])
    # loopback, unless a container says otherwise: there the loopback is reached by nobody
    host = env.get("PAGES_HOST", "127.0.0.1")
    uvicorn.run(app, host=host, port=int(env["PAGES_PORT"]), log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
