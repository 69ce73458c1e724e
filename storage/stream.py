"""The stream server: a Redis-protocol server that evicts nothing and syncs every write. Consumer groups on streams."""

from __future__ import annotations

import json
from typing import Any

import redis

from storage.errors import Problem
from storage.settings import Settings


class Stream:
    """Messages in order, at least once: acknowledged only after what they caused has been committed."""

    def __init__(self, settings: Settings) -> None:
        settings.need("stream_url")
        self.client = redis.Redis.from_url(
            settings.stream_url.get_secret_value(), socket_timeout=30, socket_connect_timeout=5, decode_responses=True
        )

    def send(self, stream: str, message: dict[str, Any]) -> str:
        return str(self._do("xadd", stream, {"json": json.dumps(message, ensure_ascii=False)}))

    def receive(
        self, stream: str, group: str, consumer: str, count: int = 100, block_ms: int = 1000
    ) -> list[tuple[str, dict[str, Any]]]:
        """The next messages for this consumer; its own unacknowledged ones first."""
        try:
            self.client.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        for start in ("0", ">"):
            answer = self._do("xreadgroup", group, consumer, {stream: start}, count=count, block=block_ms)
            messages = [(str(i), json.loads(fields["json"])) for _, batch in answer or [] for i, fields in batch]
            if messages:
                return messages
        return []

    def acknowledge(self, stream: str, group: str, ids: list[str]) -> None:
        if ids:
            self._do("xack", stream, group, *ids)

    def _do(self, command: str, *args: Any, **options: Any) -> Any:
        try:
            return getattr(self.client, command)(*args, **options)
        except redis.RedisError as error:
            raise Problem(f"the stream server failed: {error}", "`lyrebird status` shows whether it is up") from error
