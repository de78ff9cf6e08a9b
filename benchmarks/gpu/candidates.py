"""Other settings of the engine, each one change: what it does to the card alone.

Steps of two windows of `--work qwen`, answers of others included, have about 13,300 tokens, and steps of one
about 6,700: the sizes of CUDA graphs follow from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conf.engine import EngineSettings
from udfs.engine.fused_layers import CHANGES, switches
from udfs.engine.tower_width import wider_tower


@dataclass(frozen=True)
class Candidate:
    """One change.

    Attributes:
        max_in_flight: windows in flight; None: as many as ever.
        arguments: of vLLM's engine.
        needs_fp8: whether it means nothing without FP8 weights.
    """

    max_in_flight: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs_fp8: bool = False

    def settings(self, settings: EngineSettings) -> EngineSettings:
        """Returns `settings` with the change."""
        arguments = settings.vllm_arguments | dict(self.arguments)
        if "quantization" in self.arguments and (
            wider := wider_tower(settings.model_path, settings.vllm_arguments)
        ):
            # Weights that somebody else quantizes are not widened unasked.
            arguments["hf_overrides"] = wider
        return settings.model_copy(
            update={
                "max_in_flight": self.max_in_flight or settings.max_in_flight,
                "vllm_arguments": arguments,
            }
        )


def _layers_off(*changes: str, needs_fp8: bool = False) -> Candidate:
    return Candidate(arguments={"additional_config": switches(*changes, on=False)}, needs_fp8=needs_fp8)


CANDIDATES = {
    "steps_4k": Candidate(arguments={"max_num_batched_tokens": 4096}),
    "steps_8k": Candidate(arguments={"max_num_batched_tokens": 8192}),
    "steps_32k": Candidate(arguments={"max_num_batched_tokens": 32_768}),
    "in_flight_64": Candidate(max_in_flight=64),
    "in_flight_96": Candidate(max_in_flight=96),
    "in_flight_192": Candidate(max_in_flight=192),
    "in_flight_256": Candidate(max_in_flight=256),
    # Half the bytes of each window's cache, which each token of an answer reads.
    "cache_fp8": Candidate(arguments={"kv_cache_dtype": "fp8"}),
    # Blocks of the cache that are as long as what FlashAttention reads at a time.
    "blocks_of_128": Candidate(arguments={"block_size": 128}),
    "sync_scheduling": Candidate(arguments={"async_scheduling": False}),
    "eager_tower": Candidate(arguments={"compilation_config": {"compile_mm_encoder": False}}),
    "triton_attention": Candidate(arguments={"attention_backend": "TRITON_ATTN"}),
    "triton_tower_attention": Candidate(arguments={"mm_encoder_attn_backend": "TRITON_ATTN"}),
    "no_graphs": Candidate(arguments={"compilation_config": {"cudagraph_mode": "NONE"}}),
    "graphs_of_prompts": Candidate(
        arguments={
            "compilation_config": {
                "cudagraph_capture_sizes": [1, 2, 4, *range(8, 136, 8), 6784, 13_312],
            }
        }
    ),
    # The kernels that the compiler writes, with sizes of blocks that it has tried.
    "tuned_kernels": Candidate(
        arguments={"compilation_config": {"inductor_compile_config": {"coordinate_descent_tuning": True}}}
    ),
    # vLLM's own layers instead of Captionlake's.
    "vllm_layers": _layers_off(*CHANGES),
    "vllm_windows": _layers_off("window_attention"),
    "vllm_last_layer": _layers_off("last_layer"),
    "vllm_fp8": _layers_off("fp8_rows", needs_fp8=True),
    "tower_16_bits": Candidate(
        arguments={
            "quantization": "fp8_per_tensor",
            "quantization_config": {"ignore": [r"re:visual\..*"]},
        },
        needs_fp8=True,
    ),
}
"""By name."""
