"""The tables. Times are UTC; what a table of the first schema holds is never renamed in place."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = [
    "Audit",
    "Base",
    "Delivery",
    "Inspection",
    "Label",
    "PatchScores",
    "Picture",
    "Product",
    "Session",
    "Setting",
    "Token",
    "User",
    "Version",
]

# SQLite counts rows by itself only where their number is an INTEGER.
RowNumber = BigInteger().with_variant(Integer, "sqlite")

# Ordered by its bytes in both databases, so that all that begins alike lies side by side.
Ordered = String(200).with_variant(String(200, collation="C"), "postgresql")


class Moment(TypeDecorator[datetime]):
    """A time with its zone, kept as UTC; a time without one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From it; SQLite forgets the zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables, with names for their constraints, which migrations need."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: Moment,
        dict[str, Any]: JSON,
        list[Any]: JSON(none_as_null=True),
    }


class Setting(Base):
    """What the station itself has to remember: that it was set up, its own secrets."""

    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[dict[str, Any]]


class User(Base):
    """An account."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    """As it is shown; lower case letters count as upper case ones, see ``folded``."""
    folded: Mapped[str] = mapped_column(String(200), unique=True)
    password: Mapped[str] = mapped_column(String(300))
    """argon2's hash."""
    role: Mapped[str] = mapped_column(String(20))
    """``operator``, ``engineer`` or ``admin``."""
    language: Mapped[str | None] = mapped_column(String(10))
    created: Mapped[datetime]
    disabled: Mapped[bool] = mapped_column(default=False)
    failures: Mapped[int] = mapped_column(default=0)
    """Log-ins that failed since the last that did not."""
    locked_until: Mapped[datetime | None]


class Session(Base):
    """A browser that is logged in."""

    __tablename__ = "sessions"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of what the cookie holds."""
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    csrf: Mapped[str] = mapped_column(String(64))
    created: Mapped[datetime]
    expires: Mapped[datetime]
    user: Mapped[User] = relationship(lazy="joined")


class Token(Base):
    """A key of a program."""

    __tablename__ = "tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the token, which is shown once and not kept."""
    scopes: Mapped[list[Any]]
    """Of ``inspect``, ``read``, ``label``, ``manage``."""
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    last_used: Mapped[datetime | None]


class Product(Base):
    """A kind of part."""

    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    number: Mapped[int | None] = mapped_column(unique=True)
    """Number of the recipe, as a PLC's register gives it."""
    barcode: Mapped[str | None] = mapped_column(String(200), unique=True)
    """What switches to it when it is read."""
    live_id: Mapped[int | None]
    """The version that judges; None: nothing is inspected yet. No constraint: versions already
    refer to their product, and two tables that need each other cannot be made one by one."""
    shadow: Mapped[bool] = mapped_column(default=False)
    """It judges and stores, and switches nothing."""
    deadline: Mapped[float | None]
    checks: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Which checks of a picture are off, as ``{"dark": false}``; what is not named is on."""
    cost_miss: Mapped[float | None]
    """What a missed defect costs, and a good part that is rejected; in any one unit."""
    cost_reject: Mapped[float | None]
    created: Mapped[datetime]
    archived: Mapped[datetime | None]
    live: Mapped["Version | None"] = relationship(
        primaryjoin="foreign(Product.live_id) == Version.id", lazy="joined", viewonly=True
    )


class Version(Base):
    """A model of a product. Its file never changes: what is learned makes another version."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("product_id", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id", ondelete="CASCADE"))
    number: Mapped[int]
    """From 1, within the product."""
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    file: Mapped[str] = mapped_column(String(300))
    """Within the station's folder."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the file."""
    made_by: Mapped[str] = mapped_column(String(100))
    made: Mapped[datetime]
    how: Mapped[str] = mapped_column(String(20))
    """``fit``, ``add``, ``forget``, ``threshold``, ``upload``."""
    note: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[str] = mapped_column(String(20), default="ready")
    """``ready``; ``quarantined`` until an engineer accepts a file from outside; ``dropped`` of one
    that is not to be made live any more, until it is taken back."""
    threshold: Mapped[float | None]
    promise: Mapped[str] = mapped_column(Text, default="")
    """What its threshold promises, in English words."""
    facts: Mapped[dict[str, Any]]
    """Method, backbone, resolution, references, good scores: of the file's header."""


class Inspection(Base):
    """What was found on a part. Written before anybody is told."""

    __tablename__ = "inspections"
    __table_args__ = (
        Index("ix_inspections_received", "received", "id"),
        Index("ix_inspections_product", "product_id", "received", "id"),
        Index("ix_inspections_verdict", "verdict", "received", "id"),
        Index("ix_inspections_label", "label", "received", "id"),
        Index("ix_inspections_serial", "serial", "received"),
        Index("ix_inspections_score", "product_id", "score", "received", "id"),
        Index("ix_inspections_tally", "received", "product_id", "verdict", "label"),
        # What waits for somebody's eyes, and how far verdicts agree with what people said.
        Index("ix_inspections_said", "product_id", "label", "verdict", "received", "id", "told"),
        # Parts that are known to be bad, by their scores by a version.
        Index("ix_inspections_known", "product_id", "label", "version_id", "score", "id"),
        Index("ix_inspections_picture", "picture_id"),
    )
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    request: Mapped[str] = mapped_column(String(200), unique=True)
    """The request's own id: a second one with the same is answered with the first one's result."""
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    source: Mapped[str] = mapped_column(String(100))
    serial: Mapped[str | None] = mapped_column(Ordered)
    meta: Mapped[dict[str, Any]]
    received: Mapped[datetime]
    finished: Mapped[datetime]
    picture_id: Mapped[int | None] = mapped_column(ForeignKey("pictures.id"))
    """None where none could be kept, or retention took it."""
    width: Mapped[int | None]
    height: Mapped[int | None]
    score: Mapped[float | None]
    threshold: Mapped[float | None]
    pixel_threshold: Mapped[float | None]
    p_value: Mapped[float | None]
    verdict: Mapped[str] = mapped_column(String(20))
    """``good``, ``reject``, or ``not-inspected``: never good where anything is not known."""
    reason: Mapped[str] = mapped_column(String(300), default="")
    """Of what was not inspected, why: a code of ``inspection.reasons``, then words."""
    told: Mapped[str] = mapped_column(String(20))
    """What the line was told: ``good``, ``reject``, ``stop``, or ``nothing`` in shadow mode."""
    regions: Mapped[list[Any]]
    """Boxes of what is wrong, as ``Prediction.to_dict`` has them."""
    brightness: Mapped[float | None]
    """Mean grey value on [0, 1]."""
    sharpness: Mapped[float | None]
    """Variance of the Laplacian of grey values on [0, 1], times 1000."""
    milliseconds: Mapped[float]
    """From its arrival to its being stored."""
    label: Mapped[str | None] = mapped_column(String(20))
    """What people say of it: ``good``, ``bad``; None: nobody has."""
    kind: Mapped[str | None] = mapped_column(String(100))
    """The kind of defect, where somebody said so."""
    labelled_by: Mapped[str | None] = mapped_column(String(100))
    labelled: Mapped[datetime | None]
    product: Mapped[Product] = relationship()
    version: Mapped[Version | None] = relationship()
    picture: Mapped["Picture | None"] = relationship()


class Picture(Base):
    """A picture's file; the same bytes are kept once."""

    __tablename__ = "pictures"
    __table_args__ = (Index("ix_pictures_kept", "kept", "id"),)
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of its bytes, as they arrived."""
    file: Mapped[str] = mapped_column(String(300))
    """Within the station's folder."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes."""
    kept: Mapped[datetime]


class PatchScores(Base):
    """What an inspection's map is drawn from, apart: lists of inspections do not read it."""

    __tablename__ = "patch_scores"
    inspection_id: Mapped[int] = mapped_column(
        ForeignKey("inspections.id", ondelete="CASCADE"), primary_key=True
    )
    rows: Mapped[int]
    columns: Mapped[int]
    window: Mapped[list[Any] | None]
    """What of the picture the grid covers: top, left, height, width; None: all of it."""
    values: Mapped[bytes] = mapped_column(LargeBinary)
    """float32, little-endian."""


class Label(Base):
    """What somebody said of an inspection, each time: the last one counts."""

    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    inspection_id: Mapped[int] = mapped_column(
        ForeignKey("inspections.id", ondelete="CASCADE"), index=True
    )
    label: Mapped[str | None] = mapped_column(String(20))
    kind: Mapped[str | None] = mapped_column(String(100))
    by: Mapped[str] = mapped_column(String(100))
    at: Mapped[datetime] = mapped_column(index=True)


class Delivery(Base):
    """A message that an output still owes; it is gone when it was delivered."""

    __tablename__ = "deliveries"
    __table_args__ = (UniqueConstraint("output", "inspection_id"),)
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    output: Mapped[str] = mapped_column(String(100), index=True)
    inspection_id: Mapped[int] = mapped_column(ForeignKey("inspections.id", ondelete="CASCADE"))
    attempts: Mapped[int] = mapped_column(default=0)
    next: Mapped[datetime]
    error: Mapped[str] = mapped_column(String(500), default="")


class Audit(Base):
    """Who did what. Only ever added to: a trigger refuses changes, and each row seals the last."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    by: Mapped[str] = mapped_column(String(100))
    """A user's name, ``token NAME``, or ``station``."""
    action: Mapped[str] = mapped_column(String(50))
    """A verb and its object: ``product.create``, ``version.live``, ``login.failed``."""
    object: Mapped[str] = mapped_column(String(200), default="")
    detail: Mapped[dict[str, Any]]
    seal: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the row and of the seal before it."""
