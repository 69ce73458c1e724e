"""The object store: any S3-compatible server, through boto3. Nothing here relies on what only one server does."""

from __future__ import annotations

import mimetypes
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from storage.errors import Problem
from storage.settings import Settings, on_this_machine

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LARGE = 512 << 20  # bytes: a larger file goes up in parts of this size


class Objects:
    """Put, get, list and delete objects with the credentials of one role."""

    def __init__(self, settings: Settings) -> None:
        settings.need("s3_endpoint", "s3_access_key", "s3_secret_key")
        self._endpoint = settings.s3_endpoint
        self.client: S3Client = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
            region_name=settings.s3_region,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 5, "mode": "standard"},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=16,
                proxies={} if on_this_machine(settings.s3_endpoint) else None,  # None: as the environment says
            ),
        )

    def put(
        self,
        bucket: str,
        key: str,
        body: bytes | Path | BinaryIO,
        content_type: str = "application/octet-stream",
        *,
        if_absent: bool = False,
        metadata: dict[str, str] | None = None,
    ) -> bool:
        """Write an object; with ``if_absent`` only where there is none. Returns whether it was written."""
        extra: dict[str, Any] = {"ContentType": content_type, "Metadata": metadata or {}}
        if if_absent:
            extra["IfNoneMatch"] = "*"
        try:
            if isinstance(body, Path) and not if_absent:  # S3 takes no more than 5 GB at once
                parts = TransferConfig(multipart_threshold=LARGE, multipart_chunksize=LARGE, use_threads=False)
                self.client.upload_file(str(body), bucket, key, ExtraArgs=extra, Config=parts)
            elif isinstance(body, Path):
                with body.open("rb") as file:
                    self.client.put_object(Bucket=bucket, Key=key, Body=file, **extra)
            else:
                self.client.put_object(Bucket=bucket, Key=key, Body=body, **extra)
        except ClientError as error:
            if if_absent and _status(error) in (409, 412):
                return False
            raise self._problem("write", bucket, key, error) from error
        except (BotoCoreError, Boto3Error) as error:
            raise self._problem("write", bucket, key, error) from error
        return True

    def get(self, bucket: str, key: str) -> bytes:
        """The whole object. Raises Problem when it is not there."""
        with closing(self.open(bucket, key)) as body, self._reading(bucket, key):
            return body.read()

    def open(self, bucket: str, key: str) -> BinaryIO:
        """The object as a stream to read and close."""
        try:
            return cast(BinaryIO, self.client.get_object(Bucket=bucket, Key=key)["Body"])
        except (ClientError, BotoCoreError) as error:
            raise self._problem("read", bucket, key, error) from error

    def download(self, bucket: str, key: str, path: Path) -> None:
        """Write the object to a file, in bounded memory."""
        with closing(self.open(bucket, key)) as body, path.open("wb") as file, self._reading(bucket, key):
            shutil.copyfileobj(body, file, 1 << 20)

    @contextmanager
    def _reading(self, bucket: str, key: str) -> Iterator[None]:
        """A server that goes away in the middle is the same trouble as one that does not answer.

        The body must be read as it is: as a context manager it gives the bare stream, whose errors are not boto's and
        which does not mind an end that came too soon.
        """
        try:
            yield
        except BotoCoreError as error:
            raise self._problem("read", bucket, key, error) from error

    def exists(self, bucket: str, key: str) -> bool:
        try:
            self.client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _status(error) == 404:
                return False
            raise self._problem("look for", bucket, key, error) from error
        except BotoCoreError as error:
            raise self._problem("look for", bucket, key, error) from error
        return True

    def list(self, bucket: str, prefix: str = "") -> Iterator[str]:
        """Keys under a prefix, in order."""
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield item["Key"]
        except (ClientError, BotoCoreError) as error:
            raise self._problem("list", bucket, prefix, error) from error

    def delete(self, bucket: str, key: str) -> None:
        try:
            self.client.delete_object(Bucket=bucket, Key=key)
        except (ClientError, BotoCoreError) as error:
            raise self._problem("delete", bucket, key, error) from error

    def upload_folder(self, bucket: str, prefix: str, folder: Path) -> int:
        """Upload a folder of files with their content types. Returns how many."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            self.put(bucket, f"{prefix}/{path.relative_to(folder).as_posix()}", path, kind)
        return len(files)

    def _problem(self, verb: str, bucket: str, key: str, error: Exception) -> Problem:
        return Problem(
            f"the object store at {self._endpoint} could not {verb} {bucket}/{key}: {error}",
            "`lyrebird status` shows whether it is up",
        )


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
