"""Buckets that keep versions: deleting an object there only hides it, so what they kept is deleted as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fsspec

from m4v.core.errors import InfrastructureError
from m4v.core.storage import storage_faults

_PART = 1000  # versions that S3 lists, and deletes, at once


class Version(NamedTuple):
    """One kept version of an object (or the mark of its deletion)."""

    key: str
    version_id: str


def versions(uri: str) -> Iterator[Version]:
    """Every version that an S3 bucket keeps of the object at `uri` or of those below it, current ones included.

    None in other stores, and in buckets that keep none. Raises InfrastructureError when the bucket does not say.
    """
    if not uri.startswith("s3://"):
        return
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    bucket, _, prefix = path.partition("/")
    with storage_faults(uri):
        if not _keeps_versions(fs, bucket, uri):
            return
        more: dict[str, str] = {}
        while True:
            page = fs.call_s3("list_object_versions", Bucket=bucket, Prefix=prefix, MaxKeys=_PART, **more)
            for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                if one["Key"] == prefix or one["Key"].startswith(f"{prefix}/"):
                    yield Version(one["Key"], one["VersionId"])
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}


def _any(_: str) -> bool:
    return True


def delete_versions(uri: str, wanted: Callable[[str], bool] = _any) -> int:
    """Delete them all, or those whose name below `uri` is `wanted`; returns how many. Of each object the newest goes
    last, so that what is left of a killed deletion is found again.

    Raises InfrastructureError for what the bucket refuses to delete (locked objects, or no right to delete versions).
    """
    root = uri.removeprefix("s3://").partition("/")[2]
    found = [one for one in versions(uri) if wanted(one.key[len(root) :].lstrip("/"))][::-1]
    if not found:
        return 0
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    for start in range(0, len(found), _PART):
        doomed = [{"Key": one.key, "VersionId": one.version_id} for one in found[start : start + _PART]]
        with storage_faults(uri):
            done = fs.call_s3(
                "delete_objects", Bucket=path.partition("/")[0], Delete={"Objects": doomed, "Quiet": True}
            )  # fmt: skip
        if refused := done.get("Errors"):
            raise InfrastructureError(
                f"the bucket keeps {len(refused)} versions that it does not let go: {refused[0].get('Message')}",
                value=refused[0].get("Key"), where=uri,
                next_step="allow s3:DeleteObjectVersion there, then the same command goes on",
            )  # fmt: skip
    return len(found)


def _keeps_versions(fs: Any, bucket: str, uri: str) -> bool:
    """Also a bucket that stopped keeping them still has those from before."""
    try:
        return bool(fs.call_s3("get_bucket_versioning", Bucket=bucket).get("Status"))
    except NotImplementedError:  # a store of this protocol that has no versions
        return False
    except PermissionError as error:
        raise InfrastructureError(
            "the bucket does not say whether it keeps versions of what is deleted", value=bucket, where=uri,
            next_step="allow s3:GetBucketVersioning, then the same command goes on",
        ) from error  # fmt: skip
