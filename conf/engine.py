"""What an engine is made of: the model it loads, and how it turns frames into the model's input."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from conf.variants import ModelVariant

DType = Literal["bfloat16", "float16", "float32"]
# The engine runs in a folder of its own, so a path must not depend on where its client is.
LocalPath = Annotated[str, AfterValidator(lambda path: str(Path(path).absolute()))]

# What the loaded engine depends on. The other fields travel with each connection, so that clients
# that differ only in them share one engine.
LOADED = (
    "model_path",
    "kind",
    "dtype",
    "fp8",
    "max_model_len",
    "disable_mmcache",
    "max_in_flight",
    "seed",
    "python",
    "vllm_arguments",
)

# Arguments of vLLM's engine that follow from other settings, or that must be as they are.
DECIDED_ELSEWHERE = {
    "model": "the model variant and model_dir",
    "dtype": "engine.dtype",
    "quantization": "fp8",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_in_flight",
    "enable_prefix_caching": "disable_mmcache",
    "mm_processor_cache_gb": "disable_mmcache",
    "mm_processor_cache_type": "frames are handed to the engine as they are",
    "limit_mm_per_prompt": "one video for each window",
    "trust_remote_code": "code from a checkpoint is never run",
    "worker_extension_cls": "the engine's own worker",
    "tensor_parallel_size": "one engine for each GPU",
    "pipeline_parallel_size": "one engine for each GPU",
    "data_parallel_size": "one engine for each GPU",
    "hf_token": "HF_TOKEN in the environment, since arguments are written down with the run",
}


def vllm_argument(text: str) -> tuple[str, Any]:
    """Returns the name and the value of `NAME=VALUE`; the value is JSON, or else text.

    Raises:
        ValueError: it is none, or the name is that of an argument that other settings decide.

    Example:
        >>> vllm_argument("max-num-batched-tokens=8192")
        ('max_num_batched_tokens', 8192)
    """
    name, equals, value = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not name.isidentifier():
        raise ValueError(f"{text!r} is not NAME=VALUE")
    if name in DECIDED_ELSEWHERE:
        raise ValueError(f"{name} cannot be given here; it follows from: {DECIDED_ELSEWHERE[name]}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value.strip()


class RenderSettings(BaseModel):
    """How the frames and texts of one client become the model's input.

    Attributes:
        model_does_preprocess: True when frames come at full size and the model's own processor
            resizes them; False when they come at the size that the model will see.
        preprocess_dtype: type in which `uint8` frames are rescaled and normalized; used when
            `model_does_preprocess` is False.
        patch_px: side of one merged patch in pixels.
        min_patches: least number of merged patches of a frame.
        max_patches: greatest number of merged patches of a frame.
        total_patches: greatest number of merged patches of all frames of a window.
        record_dir: folder on the host's machine that gets, per request, what reached vLLM; None for
            no records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_does_preprocess: bool = False
    preprocess_dtype: DType = "float32"
    patch_px: int = Field(default=28, ge=1)
    min_patches: int = Field(default=128, ge=1)
    max_patches: int = Field(default=768, ge=1)
    total_patches: int = Field(default=24_576, ge=1)
    record_dir: LocalPath | None = None

    @classmethod
    def of_variant(
        cls,
        variant: ModelVariant,
        *,
        model_does_preprocess: bool = False,
        preprocess_dtype: DType = "float32",
        record_dir: str | None = None,
    ) -> "RenderSettings":
        """Returns settings with the frame budget of `variant`."""
        return cls(
            model_does_preprocess=model_does_preprocess,
            preprocess_dtype=preprocess_dtype,
            patch_px=variant.patch_px,
            min_patches=variant.min_patches,
            max_patches=variant.max_patches,
            total_patches=variant.total_patches,
            record_dir=record_dir,
        )


class HubWeights(BaseModel):
    """Weights that are fetched from the model hub where they are not there.

    Attributes:
        repo_id: the repository, e.g. `Qwen/Qwen3-14B`.
        revision: the commit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo_id: str
    revision: str


class EngineSettings(BaseModel):
    """Settings of one engine and of the clients that use it.

    Attributes:
        model_path: local folder of the checkpoint.
        kind: "caption" for a model that sees video, "text" for one that rewrites captions.
        dtype: type of weights and activations.
        fp8: quantize weights to FP8 where the card can; elsewhere `dtype` with one warning.
        max_model_len: greatest number of prompt and output tokens together.
        disable_mmcache: turns off both the cache of processed videos and prefix caching.
        max_in_flight: requests that all clients of an engine together keep in flight.
        hang_timeout_s: seconds without any step of the engine, while requests run, that count as a hang.
        start_timeout_s: seconds after which a start that has not finished counts as failed.
        tenure_s: seconds that an engine on a GPU serves before other settings may replace it while it
            has work; without work it goes at once.
        seed: of the engine's random numbers.
        python: interpreter of the engine's own environment; None for the client's interpreter.
        vllm_arguments: more arguments of vLLM's engine, by name; they win over those that we choose.
        weights: what is fetched to `model_path` before the engine starts; None: somebody put it there.
        render: how this client's requests become the model's input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_path: LocalPath
    kind: Literal["caption", "text"]
    dtype: DType = "bfloat16"
    fp8: bool = False
    max_model_len: int = Field(default=32_768, ge=1)
    disable_mmcache: bool = False
    max_in_flight: int = Field(default=128, ge=1)
    hang_timeout_s: float = Field(default=300.0, gt=0)
    start_timeout_s: float = Field(default=1800.0, gt=0)
    tenure_s: float = Field(default=60.0, ge=0)
    seed: int = 0
    python: str | None = None
    vllm_arguments: dict[str, Any] = {}
    weights: HubWeights | None = None
    render: RenderSettings = RenderSettings()

    @property
    def key(self) -> str:
        """Hash of what the loaded engine depends on; clients of equal key share an engine."""
        loaded = self.model_dump(include=set(LOADED))
        return hashlib.sha256(json.dumps(loaded, sort_keys=True).encode()).hexdigest()[:16]
