"""The last layer of vLLM's language models, behind its attention, for the tokens that are sampled from alone.

Of a prompt's thousands of tokens only the last one's numbers are read when the last layer has computed them:
the model runner takes the row of each request's last token of a step and makes logits of it. The others' keys
and values are needed, so everything up to the attention is computed for all tokens, as ever; the attention's
own product, the norm behind it and the MLP are not.

Which rows these are changes from step to step, and with it how many. A compiled model knows nothing of that:
to the compiler, all that is behind the attention is one operation, whose results have a row for each token.
The rows that nobody reads are no numbers (NaN).

Rows of other tokens would be read for the log-probabilities of prompts, which our engine never asks for
(`vllm_compat.Engine.generate`); a request for them to a model of this kind would get no numbers.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)

BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN")

Pair = tuple[torch.Tensor, torch.Tensor]


@functools.cache
def shorten_models() -> None:
    """Has vLLM's models of Qwen's kind compute so from now on, where `reads_last_tokens_alone`.

    Qwen2.5-VL's language model is a `Qwen2Model`; those of Qwen3 and Qwen3-VL are made as one, too.

    Raises:
        ImportError, AttributeError: where a version of vLLM is built otherwise.
    """
    from vllm.model_executor.models.qwen2 import Qwen2Model

    from udfs.engine.fused_layers import after_making

    register_operation()
    after_making(Qwen2Model, shorten_model, named="last_layer", of_subclasses=True)


@functools.cache
def register_operation() -> None:
    """Tells torch of `finish_last_layer`, so that it can compile what is around it."""
    from vllm.utils.torch_utils import direct_register_custom_op

    direct_register_custom_op("finish_last_layer", finish_last_layer, fake_impl=empty_like_results)


def shorten_model(model: Any) -> None:
    """Shortens the last layer of a model that was made just now, if that can be done.

    Args:
        model: a `Qwen2Model`, or a model of a class that is made as one.
    """
    from vllm.config import get_current_vllm_config

    config = get_current_vllm_config()
    layer = model.layers[model.end_layer - 1]
    if reads_last_tokens_alone(config) and has_known_parts(layer):
        shorten_layer(layer, config.compilation_config.static_forward_context)
        logger.info("behind its attention, the last layer computes tokens that are sampled from alone")


def reads_last_tokens_alone(config: Any) -> bool:
    """Whether a model with this `VllmConfig` is read at the last tokens of requests alone, on one card.

    Nor may a token's numbers depend on how many others there are, where that is asked for. Drafts are
    verified at several tokens and made from all of them, and pooling reads all. Adapters replace layers after
    the model is made. Prefills that end early take the last layers' inputs apart themselves.
    """
    from vllm import envs

    parallel = config.parallel_config
    return (
        not envs.VLLM_BATCH_INVARIANT
        and config.model_config.runner_type == "generate"
        and config.speculative_config is None
        and config.lora_config is None
        and not config.cache_config.kv_sharing_fast_prefill
        and parallel.tensor_parallel_size == parallel.pipeline_parallel_size == 1
        and getattr(parallel, "prefill_context_parallel_size", 1) == 1
    )


def has_known_parts(layer: Any) -> bool:
    """Whether a layer is one of those that `shorten_layer` knows, and computes as its class says.

    Attention of backends that are not listed does not say where requests begin.
    """
    from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
    from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
    from vllm.v1.attention.backend import AttentionType

    if type(layer) not in (Qwen2DecoderLayer, Qwen3DecoderLayer):
        return False
    # Weights that are kept outside the card are fetched by a `forward` of the layer's own.
    own = any("forward" in vars(part) for part in (layer, layer.self_attn, layer.self_attn.o_proj))
    attention = layer.self_attn.attn
    known = attention.attn_type == AttentionType.DECODER and attention.attn_backend.get_name() in BACKENDS
    return known and not own


def shorten_layer(layer: Any, named: dict[str, Any]) -> None:
    """Has a layer leave what is behind its attention to `finish_last_layer`.

    Args:
        layer: a decoder layer of vLLM's Qwen2 or Qwen3. Names of parameters stay what they are.
        named: what operations find by name in a forward context.
    """
    attention = layer.self_attn
    rest = Rest(attention.o_proj.forward, layer.post_attention_layernorm, layer.mlp)
    shortened, passing = _mixed(ShortenedLayer, layer), _mixed(PassingProduct, attention.o_proj)
    _launch_kernels(layer)
    layer.attention_name = attention.attn.layer_name
    named[_name_of_rest(layer.attention_name)] = rest
    # Nothing can fail between these two, one of which alone would be wrong.
    layer.__class__, attention.o_proj.__class__ = shortened, passing


def _name_of_rest(attention_name: str) -> str:
    return f"{attention_name}.rest_of_layer"


def _mixed(mixin: type, made: Any) -> type:
    """Returns a class of which something that was made can become, and that behaves as `mixin` says."""
    kind = type(made)
    return type(kind.__name__, (mixin, kind), {})


def _launch_kernels(layer: Any) -> None:
    """Has the steps behind the attention launch vLLM's kernels on a card, where it left them to the compiler.

    That one sees nothing of them here.
    """
    from vllm.platforms import current_platform

    from udfs.engine.fp8_product import kernel_of

    if not current_platform.is_cuda():
        return
    from vllm._custom_ops import fused_add_rms_norm  # noqa: F401 (so that it is known now that it is there)

    products = (layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj)
    quantizers = (getattr(kernel_of(product), "quant_fp8", None) for product in products)
    for step in (layer.mlp.act_fn, *quantizers):
        if step is not None:
            step._forward_method = step.forward_cuda


class PassingProduct:
    """What an attention's own product is while the attention computes: nothing."""

    def forward(self, attention_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Returns what it is given, and no bias."""
        return attention_output, None


class ShortenedLayer:
    """A decoder layer whose results are right for the tokens that are sampled from.

    Attributes:
        attention_name: name of the attention in a forward context.
    """

    attention_name: str
    input_layernorm: Any
    self_attn: Any

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> Pair:
        """Returns hidden states and residual, both (tokens, hidden size), as the layer's class does.

        Args:
            positions: (tokens,), or (3, tokens).
            hidden_states: (tokens, hidden size).
            residual: (tokens, hidden size), or None in a first layer.
        """
        if residual is None:
            normalized, residual = self.input_layernorm(hidden_states), hidden_states
        else:
            normalized, residual = self.input_layernorm(hidden_states, residual)
        attention_output = self.self_attn(positions=positions, hidden_states=normalized)
        results: Pair = torch.ops.vllm.finish_last_layer(attention_output, residual, self.attention_name)
        return results


@dataclass(frozen=True)
class Rest:
    """What is behind the attention of a layer.

    Attributes:
        project: the attention's own product; returns it with its bias.
        norm: the norm of what that is added to.
        mlp: the layer's MLP.
    """

    project: Callable[[torch.Tensor], tuple[torch.Tensor, Any]]
    norm: Any
    mlp: Callable[[torch.Tensor], torch.Tensor]

    def compute(self, attention_output: torch.Tensor, residual: torch.Tensor) -> Pair:
        """Returns hidden states and residual, both (tokens, hidden size).

        Args:
            attention_output: (tokens, heads * head size).
            residual: (tokens, hidden size); may be overwritten.
        """
        projected, _ = self.project(attention_output)
        normalized, residual = _add_and_normalize(self.norm, projected, residual)
        return self.mlp(normalized), residual


def _add_and_normalize(norm: Any, x: torch.Tensor, residual: torch.Tensor) -> Pair:
    """Returns the norm of a sum, and the sum; on a card in one kernel, a plain one in place."""
    from vllm.model_executor.layers.layernorm import RMSNorm

    if not x.is_cuda or type(norm) is not RMSNorm or norm.variance_size_override is not None:
        x, residual = norm(x, residual)
        return x, residual
    from vllm import _custom_ops

    _custom_ops.fused_add_rms_norm(x, residual, norm.weight.data, norm.variance_epsilon)
    return x, residual


def finish_last_layer(
    attention_output: torch.Tensor, residual: torch.Tensor, attention_name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what is behind the attention of a last layer, for the rows that are read if these are fewer.

    Nothing waits for the card here.

    Args:
        attention_output: (tokens, heads * head size).
        residual: (tokens, hidden size).
        attention_name: name of the attention in the forward context.

    Returns:
        Hidden states and residual, both (tokens, hidden size); the rows that nobody reads are NaN.
    """
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    rest: Rest = context.no_compile_layers[_name_of_rest(attention_name)]
    rows = rows_read(context, attention_name, len(residual))
    if rows is None:
        # An operation may not write into what it is given.
        return rest.compute(attention_output, residual.clone())
    computed = rest.compute(attention_output.index_select(0, rows), residual.index_select(0, rows))
    hidden_states, sums = (
        few.new_full(residual.shape, float("nan")).index_copy_(0, rows, few) for few in computed
    )
    return hidden_states, sums


def empty_like_results(
    attention_output: torch.Tensor, residual: torch.Tensor, attention_name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `finish_last_layer` returns, without numbers."""
    shape = residual.shape
    return attention_output.new_empty(shape), residual.new_empty(shape)


def rows_read(context: Any, attention_name: str, num_rows: int) -> torch.Tensor | None:
    """Returns which rows of the last layer are read in a step, or None where all of them are to be computed.

    That is so when vLLM tries out how much memory it needs or warms up, without requests; when a graph is
    recorded or played, in which a choice of rows would stay that of its recording; when an attention does not
    say where requests begin; and when there is one row for each request.

    Args:
        context: vLLM's `ForwardContext`.
        attention_name: name of the attention in it.
        num_rows: rows that there are; some at the end may belong to no request.

    Returns:
        (requests,) of `int64`, on the model's device. A request whose prompt does not end in this step has
        one as well; what is sampled there is thrown away.
    """
    from vllm.config import CUDAGraphMode

    if context.cudagraph_runtime_mode != CUDAGraphMode.NONE or not isinstance(context.attn_metadata, dict):
        return None
    starts = getattr(context.attn_metadata.get(attention_name), "query_start_loc", None)
    if starts is None or not 1 < len(starts) <= num_rows or _graph_is_recorded(starts):
        return None
    rows: torch.Tensor = starts[1:].long() - 1
    return rows.clamp_(0, num_rows - 1)


def _graph_is_recorded(on_device_of: torch.Tensor) -> bool:
    return bool(on_device_of.is_cuda and torch.cuda.is_current_stream_capturing())
