"""Fixtures that several modules of integration tests share."""

from transform_world import built, transform_server, world

__all__ = ["built", "transform_server", "world"]
