"""Where everything is, and with which credentials: the only module that knows.

Values come from the environment (``LYREBIRD_*``). In embedded mode, and wherever secrets are mounted as files, each
role has a file ``<secrets>/<role>.env`` with only its own credentials; :func:`for_role` reads that.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from storage.errors import Problem

Role = Literal["admin", "loader", "transformer", "trainer", "analyst"]
ROLES: tuple[Role, ...] = get_args(Role)


def home() -> Path:
    """The state folder: ``$LYREBIRD_HOME``, or ``.lyrebird`` in the checkout."""
    given = os.environ.get("LYREBIRD_HOME")
    return Path(given).expanduser().absolute() if given else checkout() / ".lyrebird"


def checkout() -> Path:
    """The folder that holds ``dags/`` and ``dbt_project/``: the project is installed in place (``pip install -e``)."""
    return Path(os.environ.get("LYREBIRD_CHECKOUT") or Path(__file__).resolve().parent.parent)


def secrets() -> Path:
    """The folder of ``<role>.env`` files: ``$LYREBIRD_SECRETS``, or ``secrets`` in the state folder."""
    return Path(os.environ.get("LYREBIRD_SECRETS") or home() / "secrets")


class Settings(BaseSettings):
    """Endpoints and credentials of one role. A store that the role has no business with is simply absent."""

    model_config = SettingsConfigDict(env_prefix="LYREBIRD_", extra="ignore")

    role: Role = "analyst"
    postgres_host: str = ""
    postgres_port: int = 5432
    postgres_database: str = "lyrebird"
    postgres_user: str = ""
    postgres_password: SecretStr = SecretStr("")
    mongo_url: SecretStr = SecretStr("")
    mongo_database: str = "documents"
    cache_url: SecretStr = SecretStr("")
    stream_url: SecretStr = SecretStr("")
    s3_endpoint: str = ""
    s3_access_key: str = ""
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = "us-east-1"
    mlflow_url: str = ""
    mlflow_user: str = ""
    mlflow_password: SecretStr = SecretStr("")
    airflow_url: str = ""
    airflow_user: str = ""
    airflow_password: SecretStr = SecretStr("")
    pages_url: str = ""

    def need(self, *names: str) -> None:
        """Refuse, in one sentence, to go on without these values."""
        missing = [name for name in names if not _plain(getattr(self, name))]
        if missing:
            raise Problem(
                f"no {', '.join(f'LYREBIRD_{name.upper()}' for name in missing)} for the role {self.role}",
                "Start the stack with `make up`, or set these in the environment",
            )


def on_this_machine(url: str) -> bool:
    """Whether a server is on loopback: then its clients go past any proxy, which could not reach it, and would be sent
    its passwords. To a server elsewhere the way may well lead through one.
    """
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def environment_of(role: Role) -> dict[str, str]:
    """The ``LYREBIRD_*`` variables of a role, from its file, as text.

    Raises Problem when there is no such file.
    """
    from dotenv import dotenv_values

    path = secrets() / f"{role}.env"
    if not path.is_file():
        raise Problem(f"no credentials for the role {role} at {path}", "Start the stack with `make up`")
    return {"LYREBIRD_ROLE": role} | {name: value for name, value in dotenv_values(path).items() if value is not None}


def for_role(role: Role) -> Settings:
    """Settings of a role: the environment when it belongs to that role already, the role's file otherwise."""
    if os.environ.get("LYREBIRD_ROLE") == role:
        return Settings()
    return from_variables(environment_of(role))


def watched_stream() -> str:
    """URL of the stream server for the one who only looks whether messages wait: ``<secrets>/watcher.env``.

    Raises Problem when there is no such file.
    """
    from dotenv import dotenv_values

    path = secrets() / "watcher.env"
    url = dotenv_values(path).get("LYREBIRD_STREAM_URL") if path.is_file() else None
    if not url:
        raise Problem(f"no address of the stream server at {path}", "Start the stack with `make up`")
    return url


class _Given(Settings):
    """Settings that look nowhere but into what they are given."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,  # noqa: ARG003
        **more: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def from_variables(variables: dict[str, str]) -> Settings:
    """Settings out of ``LYREBIRD_*`` variables, whatever the process's own environment says."""
    prefix = "LYREBIRD_"
    values = {name.removeprefix(prefix).lower(): value for name, value in variables.items() if name.startswith(prefix)}
    known = {name: value for name, value in values.items() if name in Settings.model_fields}
    return _Given.model_validate(known)


def options_file() -> Path:
    """TOML with what a person sets: ``[sources.audio_folder]``, ``location = …``; ``[train]``, ``preset = …``."""
    return Path(os.environ.get("LYREBIRD_OPTIONS") or home() / "lyrebird.toml")


def options() -> dict[str, Any]:
    """The tables of the options file; none when there is no file. Raises Problem when it is no TOML."""
    path = options_file()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"{path} is no TOML: {error}", "Mend that line, or remove the file") from error
