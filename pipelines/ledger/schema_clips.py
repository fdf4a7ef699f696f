"""Tables of the clip index: which clips an artifact holds, and by what a clip is found.

Projections of artifact bytes, outside the hash chain: `m4v ledger index` makes them again. Ids and digests are
bytes, hex ids half as long; numbers stand for what repeats, so that five million clips stay small.
"""

from __future__ import annotations

from sqlalchemy import Index, Integer, LargeBinary, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from pipelines.ledger.schema import Base

KEPT, DROPPED = 0, -1  # "groups" of the rows of a clip table


class ClipSource(Base):
    """Names of source entries, by number."""

    __tablename__ = "clip_source"
    source_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(unique=True)


class SampleGroup(Base):
    """Samples of one source that have one medium and one latent size."""

    __tablename__ = "sample_group"
    group_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    source_no: Mapped[int] = mapped_column(Integer)
    media: Mapped[str]
    t: Mapped[int] = mapped_column(Integer)
    h: Mapped[int] = mapped_column(Integer)
    w: Mapped[int] = mapped_column(Integer)
    __table_args__ = (UniqueConstraint("source_no", "media", "t", "h", "w"),)


class ClipPart(Base):
    """Immutable rows that artifacts share: a shard of datasets, or a slice of clip tables by clip id.

    `digest` names the rows; they may be relied on once the part is `complete`.
    """

    __tablename__ = "clip_part"
    part_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    members: Mapped[int] = mapped_column(Integer)
    complete: Mapped[bool]


class ClipIndex(Base):
    """An artifact's place in the index. `done_rows`: how far an indexing that was killed had come."""

    __tablename__ = "clip_index"
    artifact_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    artifact_id: Mapped[str]
    kind: Mapped[str]
    members: Mapped[int]  # rows of the artifact's own index or table
    done_rows: Mapped[int]
    complete: Mapped[bool]
    parts: Mapped[bytes | None] = mapped_column(LargeBinary)  # once complete: the rows of artifact_part as ranges
    __table_args__ = (UniqueConstraint("artifact_id", "kind"),)


class ArtifactPart(Base):
    """Which parts make up an artifact."""

    __tablename__ = "artifact_part"
    artifact_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    part_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    __table_args__ = (
        Index("ix_artifact_part_part_no", "part_no", "artifact_no"),
        {"sqlite_with_rowid": False},
    )


class ArtifactGroup(Base):
    """How many samples of each group a dataset has."""

    __tablename__ = "artifact_group"
    artifact_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    group_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    samples: Mapped[int]
    __table_args__ = {"sqlite_with_rowid": False}


class PartSample(Base):
    """A sample of a dataset's part; in a clip table's part a clip, whose `sample_id` is empty."""

    __tablename__ = "part_sample"
    clip_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    part_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    sample_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    group_no: Mapped[int] = mapped_column(Integer)
    __table_args__ = {"sqlite_with_rowid": False}  # rows lie in the order that clips are looked up


class PartGroup(Base):
    """The samples of a group in a part: how many, and the smallest and the largest id."""

    __tablename__ = "part_group"
    part_no: Mapped[int] = mapped_column(Integer, autoincrement=False)
    group_no: Mapped[int] = mapped_column(Integer, autoincrement=False)
    samples: Mapped[int] = mapped_column(Integer)
    first: Mapped[bytes] = mapped_column(LargeBinary)
    last: Mapped[bytes] = mapped_column(LargeBinary)
    __table_args__ = (
        PrimaryKeyConstraint("group_no", "part_no"),  # ranks are asked for by group
        {"sqlite_with_rowid": False},
    )


class PartIds(Base):
    """The sample ids of a group in a part, sorted, 16 bytes each: ranks are read from them."""

    __tablename__ = "part_ids"
    part_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    group_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    ids: Mapped[bytes] = mapped_column(LargeBinary)


class Clip(Base):
    """By what a clip is found. A file that was replaced under its name gives a clip a second row.

    `source_key` is the beginning of sha256(source id), `digest_key` of the source file's digest, as integers.
    """

    __tablename__ = "clip"
    clip_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    digest_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    source_key: Mapped[int]
    start_us: Mapped[int]
    end_us: Mapped[int]
    source_no: Mapped[int] = mapped_column(Integer)
    block_no: Mapped[int] = mapped_column(Integer)  # of its perceptual hashes
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    source_id: Mapped[str]
    __table_args__ = (Index("ix_clip_source", "source_no", "source_key"), Index("ix_clip_digest", "digest_key"))


class HashBlock(Base):
    """Perceptual hashes of some thousand clips as columns: ids, words a clip, words. Searched by reading them all."""

    __tablename__ = "hash_block"
    block_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    clips: Mapped[bytes] = mapped_column(LargeBinary)
    counts: Mapped[bytes] = mapped_column(LargeBinary)
    words: Mapped[bytes] = mapped_column(LargeBinary)


class SourceUrl(Base):
    """Which file of a source came from a URL, by the beginnings of their digests."""

    __tablename__ = "source_url"
    url_key: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    source_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    source_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    __table_args__ = {"sqlite_with_rowid": False}
