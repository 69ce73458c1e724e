"""A trigger that waits for messages on streams: it holds no worker, and costs a socket and a look a minute.

Airflow's triggerer imports this file and runs it for as long as the DAG of a stream source is unpaused: it is the
watcher of an asset, and each event that it gives starts a run. (The other way, a task that defers itself in a DAG that
is scheduled continuously, starts a run and two processes an hour for nothing, and all the more tasks for each batch.)
It signs in as ``watcher``, who may look at streams and nothing else, and leaves the messages where they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

LOOK_S, SOON_S = 60, 5  # between two looks when nothing waits; and when something does, but not enough yet
# After an event, for the run to take what it was about, and after a failure; longer and longer while nothing is taken.
REST_S, LONGEST_REST_S = 30, 3600
LEFT_S = 600  # a message that its consumer has not acknowledged for so long was left behind
ASIDE = "aside"  # storage.stream.ASIDE: what waits there goes with the next batch


class Arrivals(BaseEventTrigger):
    """An event whenever ``size`` messages of the streams wait, or one has waited for ``age`` seconds."""

    def __init__(self, streams: list[str], group: str, size: int, age: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.streams, self.group, self.size, self.age = streams, group, size, age

    def serialize(self) -> tuple[str, dict[str, Any]]:
        options = {"streams": self.streams, "group": self.group, "size": self.size, "age": self.age}
        return "ingestion.arrivals.Arrivals", options

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Never ends by itself: a trigger that fails is started again at once, and would do nothing else."""
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        from storage.errors import Problem
        from storage.settings import watched_stream

        rest, told = REST_S, None
        while True:
            try:
                async with Redis.from_url(watched_stream(), socket_timeout=LOOK_S + 10) as server:
                    while True:
                        waiting, seconds = await self._look(server)
                        if waiting is not None:
                            yield TriggerEvent(waiting)  # type: ignore[no-untyped-call]
                            untouched = (waiting["after"], waiting["left"]) == told
                            rest = min(2 * rest, LONGEST_REST_S) if untouched else REST_S
                            told = waiting["after"], waiting["left"]
                            await asyncio.sleep(rest)
                        elif seconds is not None:
                            await asyncio.sleep(seconds)
                        else:
                            await self._next_message(server)
            except (RedisError, OSError, Problem) as error:
                self.log.warning("the stream server cannot be watched: %s", error)
                await asyncio.sleep(REST_S)

    async def _look(self, server: Any) -> tuple[dict[str, Any] | None, float | None]:
        """What waits, if it is enough; otherwise how long to wait for more, None when nothing waits at all."""
        undelivered, oldest_ms, left, after = 0, None, 0, {}
        for stream in self.streams:
            group = await self._group(server, stream)
            after[stream] = group["last"]
            first = await server.xrange(stream, f"({group['last']}", "+", count=1)
            if first:
                came_ms = int(first[0][0].split(b"-")[0])
                oldest_ms = came_ms if oldest_ms is None else min(oldest_ms, came_ms)
            if group["behind"] is None:  # the server has lost count: messages were deleted from the middle
                undelivered += len(await server.xrange(stream, f"({group['last']}", "+", count=self.size))
            else:
                undelivered += group["behind"]
            left += await self._left(server, stream) if group["there"] else 0
        waited = 0.0 if oldest_ms is None else time.time() - oldest_ms / 1000
        if undelivered >= self.size or (oldest_ms is not None and waited >= self.age) or left:
            return {"undelivered": undelivered, "left": left, "oldest_ms": oldest_ms, "after": after}, None
        return None, None if oldest_ms is None else max(1.0, min(SOON_S, self.age - waited))

    async def _group(self, server: Any, stream: str) -> dict[str, Any]:
        """The last id that the group was given, how many there are behind it, and whether it is there at all."""
        from redis.exceptions import ResponseError

        try:
            groups = await server.xinfo_groups(stream)
        except ResponseError:  # no such stream yet
            return {"last": "0-0", "behind": 0, "there": False}
        for one in groups:
            if one["name"].decode() == self.group:
                return {"last": one["last-delivered-id"].decode(), "behind": one["lag"], "there": True}
        return {"last": "0-0", "behind": await server.xlen(stream), "there": False}

    async def _left(self, server: Any, stream: str) -> int:
        """Messages that a consumer was given long ago and has not acknowledged."""
        span = {"min": "-", "max": "+", "count": 1000, "idle": int(LEFT_S * 1000)}
        found = await server.xpending_range(stream, self.group, **span)
        return sum(1 for one in found if one["consumer"] != ASIDE.encode())

    async def _next_message(self, server: Any) -> None:
        """Wait until there is a message that the group was not given; at most for the time between two looks."""
        after = {stream: (await self._group(server, stream))["last"] for stream in self.streams}
        await server.xread(after, count=1, block=LOOK_S * 1000)
