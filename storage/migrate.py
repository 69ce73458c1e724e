"""Bring the warehouse's own tables (``ops``, ``ml``), schemas and roles to the present state, with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from storage import warehouse
from storage.settings import Settings


def upgrade(settings: Settings) -> None:
    """Run the migrations that have not run. Needs the role ``admin``; safe to repeat and to run twice at once."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    engine = warehouse.engine(settings)
    with engine.connect() as db:
        config.attributes["connection"] = db
        command.upgrade(config, "head")
