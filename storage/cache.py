"""The cache: a Redis-protocol server that may forget anything at any time. Losing it loses speed, not data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis

from storage.settings import Settings

DAY = 86_400


class Cache:
    """JSON values by name, with a time to live. An unreachable cache is an empty one."""

    def __init__(self, settings: Settings) -> None:
        settings.need("cache_url")
        self.client = redis.Redis.from_url(
            settings.cache_url.get_secret_value(), socket_timeout=2, socket_connect_timeout=2, decode_responses=True
        )

    def get(self, name: str) -> Any | None:
        try:
            text = self.client.get(f"lyrebird:{name}")
        except redis.RedisError:
            return None
        return json.loads(str(text)) if text is not None else None

    def put_many(self, values: dict[str, Any], seconds: int = 30 * DAY) -> None:
        try:
            with self.client.pipeline(transaction=False) as pipe:
                for name, value in values.items():
                    pipe.set(f"lyrebird:{name}", json.dumps(value, ensure_ascii=False), ex=seconds)
                pipe.execute()
        except redis.RedisError:
            return

    def drop(self, names: Sequence[str]) -> None:
        """Forget these now. An unreachable cache may still have them when it is back, until their time is up."""
        try:
            if names:
                self.client.delete(*(f"lyrebird:{name}" for name in names))
        except redis.RedisError:
            return
