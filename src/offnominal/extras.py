"""Packages that only some of the work needs, by the extras that install them."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from offnominal.errors import MissingExtraError

__all__ = ["check_there", "is_there", "missing", "needs"]

_EXTRAS = {
    **dict.fromkeys(("cv2", "huggingface_hub", "open_clip", "scipy"), "fit"),
    **dict.fromkeys(("timm", "torch", "torchvision"), "fit"),
    **dict.fromkeys(("matplotlib", "pandas", "pyarrow"), "benchmark"),
    **dict.fromkeys(("pypcd4", "tifffile"), "3d"),
    **dict.fromkeys(("aiomqtt", "alembic", "argon2", "babel", "fastapi", "httpx"), "serve"),
    **dict.fromkeys(("multipart", "prometheus_client", "pydantic_settings", "pymodbus"), "serve"),
    **dict.fromkeys(("sqlalchemy", "structlog", "uvicorn", "watchfiles", "zxingcpp"), "serve"),
    **dict.fromkeys(("faiss", "fsspec", "ray", "s3fs"), "scale"),
    "asyncua": "opcua",
    "openai": "chat",
    "psycopg": "postgresql",
    "segmentation_models_pytorch": "supervised",
}
_CALLED = {"cv2": "OpenCV", "faiss": "FAISS", "scipy": "SciPy", "torch": "PyTorch"}


def needs(module: str, extra: str, what: str) -> Any:
    """Import a module that an extra installs.

    Parameters
    ----------
    module : str
        Such as ``cv2``.
    extra : str
        Of the package, such as ``fit``.
    what : str
        What needs it, for the message: ``colour with 16 bits a channel``.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or module).partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, and lacks something itself
        raise MissingExtraError(_told(what, module, extra)) from error


def is_there(module: str) -> bool:
    """Whether a module is installed; it is not imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of who refuses it
        return False


def check_there(module: str, what: str) -> None:
    """Raise a :class:`MissingExtraError` unless a module of an extra is installed."""
    if not is_there(module):
        raise MissingExtraError(_told(what, module, _EXTRAS[module]))


def missing(error: ModuleNotFoundError, what: str) -> MissingExtraError | None:
    """What to say of a module that was not found; None where no extra installs it."""
    name = (error.name or "").partition(".")[0]
    return MissingExtraError(_told(what, name, _EXTRAS[name])) if name in _EXTRAS else None


def _told(what: str, module: str, extra: str) -> str:
    package = module.partition(".")[0]
    called = _CALLED.get(package, package)
    return f"{what} needs {called}: pip install 'offnominal[{extra}]'"
