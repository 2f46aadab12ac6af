"""What a file of weights says of itself, read without torch."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from offnominal.errors import WeightsError

__all__ = ["read_metadata", "untrained_reason"]


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file: how its network is built and fed. Empty for other files."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def untrained_reason(metadata: Mapping[str, str]) -> str:
    """Why a file's weights are not pretrained, as its metadata says; empty if it does not say so.

    Its ``pretrained`` is then ``no``, with or without a reason: ``no: drawn from seed 0``.
    """
    said, _, reason = metadata.get("pretrained", "").partition(":")
    return (reason.strip() or "as the file says") if said.lower() in ("no", "false") else ""
