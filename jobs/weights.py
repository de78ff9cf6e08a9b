"""Where model weights lie, and which ones they are."""

import hashlib
from functools import cache
from pathlib import Path

from conf.errors import SettingsError
from conf.identity import ModelIdentity

_HASHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_BLOCK_BYTES = 16 * 1024 * 1024


def model_path(model_dir: str, model_id: str) -> Path:
    """The folder of a model's weights: `model_dir/<repository id>`.

    Raises:
        SettingsError: the weights are not there.
    """
    path = Path(model_dir).resolve() / model_id
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise SettingsError(
            f"model_dir={model_dir!r} holds no weights of {model_id}: expected config.json and *.safetensors "
            f"in {path}; copy them there, or name the folder that holds {model_id} with --model-dir"
        )
    return path


def local_model(model_dir: str, model_id: str, *, fp8: bool) -> ModelIdentity:
    """The identity of weights on disk; the revision is the SHA-256 of their files.

    Raises:
        SettingsError: the weights are not there.
    """
    return ModelIdentity(model_id, _content_hash(model_path(model_dir, model_id)), fp8)


@cache
def _content_hash(path: Path) -> str:
    """SHA-256 over names and bytes of all files that decide what the model answers."""
    total = hashlib.sha256()
    for file in sorted({file for pattern in _HASHED for file in path.glob(pattern)}):
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
        total.update(f"{file.name} {digest.hexdigest()}\n".encode())
    return total.hexdigest()
