"""Where model weights lie, which ones they are, and bringing them to the executors."""

import hashlib
import logging
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession

from conf.engine import EngineSettings, HubWeights
from conf.errors import SettingsError, WeightsError
from conf.identity import ModelIdentity
from jobs.session import parallelism
from udfs.weights import PATTERNS, ensure_weights, is_copied, problems
from udfs.worker_log import log_to_stderr

_BLOCK_BYTES = 16 * 1024 * 1024


def model_path(model_dir: str, model_id: str) -> Path:
    """The folder of a model's weights: `model_dir/<repository id>`."""
    return Path(model_dir).resolve() / model_id


def hub_weights(
    model_dir: str, model_id: str, revision: str | None, *, made_up: bool = False
) -> HubWeights | None:
    """What is to be fetched where it is missing; None where a person has put the weights on the driver.

    Args:
        model_dir: folder that `model_id` is relative to.
        model_id: the repository.
        revision: its commit; None for a model that is on no hub.
        made_up: the engine makes the weights up (`load_format=dummy`), so that a copy needs none.

    Raises:
        SettingsError: the driver's copy is not complete, or it has none and the model is on no hub.
    """
    path = model_path(model_dir, model_id)
    if is_copied(path):
        if lacking := problems(path, made_up=made_up):
            raise SettingsError(
                f"model_dir={model_dir!r} holds incomplete weights of {model_id}: {'; '.join(lacking)} in "
                f"{path}; copy what is missing, or remove the folder"
            )
        return None
    if revision is None:
        raise SettingsError(
            f"model_dir={model_dir!r} holds no weights of {model_id}: expected config.json and *.safetensors "
            f"in {path}; copy them there, or name the folder that holds {model_id} with --model-dir"
        )
    return HubWeights(repo_id=model_id, revision=revision)


def model_identity(
    model_dir: str, model_id: str, revision: str | None, *, fp8: bool, made_up: bool = False
) -> ModelIdentity:
    """The identity of the weights that will answer.

    For weights from the hub it is their pinned commit, so that a driver without weights knows it, and for
    a person's copy the SHA-256 of the files that are there.

    Raises:
        SettingsError: as `hub_weights`.
    """
    if hub_weights(model_dir, model_id, revision, made_up=made_up) is not None:
        return ModelIdentity(model_id, str(revision), fp8)
    return ModelIdentity(model_id, _content_hash(model_path(model_dir, model_id)), fp8)


def provide_weights(spark: SparkSession, engine: EngineSettings) -> None:
    """Brings the weights of an engine to the executors, once for each node, before work is handed out.

    An executor that comes later fetches them when it starts its engine.

    Raises:
        SettingsError: they cannot be brought there; names the machine and what to do.
    """
    if engine.weights is None:
        return
    slots, path, weights = parallelism(spark), engine.model_path, engine.weights

    def provide(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        log_to_stderr(logging.INFO)
        for _ in batches:
            pass
        try:
            ensure_weights(Path(path), weights)
        except WeightsError as error:
            yield pd.DataFrame({"problem": [f"{socket.gethostname()}: {error}"]}, dtype="object")

    frame = spark.range(slots, numPartitions=slots).mapInPandas(provide, "problem string")
    found = sorted({row.problem for row in frame.collect()})
    if found:
        raise SettingsError("\n".join(found))


@cache
def _content_hash(path: Path) -> str:
    """SHA-256 over names and bytes of all files that decide what the model answers."""
    total = hashlib.sha256()
    for file in sorted({file for pattern in PATTERNS for file in path.glob(pattern)}):
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
        total.update(f"{file.name} {digest.hexdigest()}\n".encode())
    return total.hexdigest()
