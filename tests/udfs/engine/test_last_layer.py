"""The last layer for the tokens that are sampled from alone: what it leaves out, when, and what is unchanged.

`test_last_layer_engine` has whole models answer with it.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from udfs.engine import last_layer
from udfs.engine.last_layer import (
    PassingProduct,
    ShortenedLayer,
    finish_last_layer,
    has_known_parts,
    reads_last_tokens_alone,
    register_operation,
    rows_read,
    shorten_layer,
    shorten_model,
)

NAME = "model.layers.3.self_attn.attn"
HIDDEN, HEADS = 8, 12


class Product(nn.Module):
    """A product as vLLM's layers have it, which notes how many rows it sees."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        if not torch.compiler.is_compiling():
            self.seen.append(len(x))
        return x @ self.weight.t(), None


class Norm(nn.Module):
    """A norm that writes into what it is given, as vLLM's does."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return x / (x.norm(dim=-1, keepdim=True) + 1)
        residual.add_(x)
        return x.copy_(residual / (residual.norm(dim=-1, keepdim=True) + 1)), residual


class Attention(nn.Module):
    """Takes every token's sum with those before it."""

    def __init__(self) -> None:
        super().__init__()
        backend = SimpleNamespace(get_name=lambda: "FLASH_ATTN")
        self.attn = SimpleNamespace(layer_name=NAME, attn_backend=backend)
        self.qkv_proj, self.o_proj = Product(HIDDEN, HEADS), Product(HEADS, HIDDEN)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        output, _ = self.o_proj((qkv * positions[:, None]).cumsum(0))
        return output


class Layer(nn.Module):
    """A decoder layer of vLLM's kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn = Attention()
        self.product = Product(HIDDEN, HIDDEN)
        self.mlp = lambda x: self.product(x)[0].relu()

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


def metadata_of(*starts: int) -> dict[str, Any]:
    return {NAME: SimpleNamespace(query_start_loc=torch.tensor(starts, dtype=torch.int32))}


def context_of(named: dict[str, Any], metadata: Any, mode: str = "NONE") -> Any:
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import ForwardContext

    return ForwardContext(named, metadata, {}, cudagraph_runtime_mode=CUDAGraphMode[mode])


def inputs_of(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(tokens)
    return torch.arange(tokens) % 5 + 1.0, torch.randn(tokens, HIDDEN), torch.randn(tokens, HIDDEN)


def shortened() -> tuple[Any, dict[str, Any]]:
    named: dict[str, Any] = {}
    layer = Layer()
    register_operation()
    shorten_layer(layer, named)
    return layer, named


@torch.inference_mode()
def computed(layer: Any, context: Any, tokens: int, *, first: bool = False) -> tuple[torch.Tensor, ...]:
    from vllm.forward_context import override_forward_context

    positions, hidden_states, residual = inputs_of(tokens)
    with override_forward_context(context):
        return layer(positions, hidden_states, None if first else residual)


@pytest.mark.parametrize("first", [False, True])
def test_rows_that_are_read_are_what_they_were_and_no_others_are_computed(first: bool) -> None:
    layer, named = shortened()
    # Of three requests, the second has one token; two rows at the end belong to none.
    context = context_of(named, metadata_of(0, 4, 5, 9))
    results = computed(layer, context, 11, first=first)
    expected = computed(Layer(), None, 11, first=first)
    for result, whole in zip(results, expected, strict=True):
        assert (result.shape, result.dtype) == (whole.shape, whole.dtype)
        torch.testing.assert_close(result[[3, 4, 8]], whole[[3, 4, 8]])
        assert result.isnan().all(dim=1).sum() == 8
    assert layer.self_attn.qkv_proj.seen == [11]
    assert layer.self_attn.o_proj.seen == layer.product.seen == [3]


@pytest.mark.parametrize(
    ("metadata", "mode"),
    [
        (None, "NONE"),
        ({}, "NONE"),
        ({NAME: SimpleNamespace()}, "NONE"),
        ({NAME: None}, "NONE"),
        ([metadata_of(0, 3), metadata_of(0, 3)], "NONE"),
        (metadata_of(0, 1, 2, 3, 4, 5, 6), "NONE"),
        (metadata_of(0), "NONE"),
        (metadata_of(0, 3, 6), "PIECEWISE"),
        (metadata_of(0, 3, 6), "FULL"),
    ],
)
def test_all_rows_are_computed_where_none_may_be_left_out(metadata: Any, mode: str) -> None:
    layer, named = shortened()
    results = computed(layer, context_of(named, metadata, mode), 6)
    for result, whole in zip(results, computed(Layer(), None, 6), strict=True):
        torch.testing.assert_close(result, whole)
    assert layer.self_attn.o_proj.seen == layer.product.seen == [6]


def test_all_rows_are_computed_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of({}, metadata_of(0, 3, 6))
    rows = rows_read(context, NAME, 6)
    assert rows is not None
    assert rows.tolist() == [2, 5]
    monkeypatch.setattr(last_layer, "_graph_is_recorded", lambda starts: True)
    assert rows_read(context, NAME, 6) is None


def test_a_row_is_one_that_there_is() -> None:
    rows = rows_read(context_of({}, metadata_of(0, 0, 3, 3, 9)), NAME, 7)
    assert rows is not None
    assert rows.tolist() == [0, 2, 2, 6]
    assert rows.dtype == torch.int64


@torch.inference_mode()
@pytest.mark.parametrize("starts", [(0, 2, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_the_operation_leaves_what_it_is_given_as_it_was(starts: tuple[int, ...]) -> None:
    from vllm.forward_context import override_forward_context

    _, named = shortened()
    attention_output, residual = torch.randn(6, HEADS), torch.randn(6, HIDDEN)
    before = attention_output.clone(), residual.clone()
    with override_forward_context(context_of(named, metadata_of(*starts))):
        finish_last_layer(attention_output, residual, NAME)
        # And torch is told truly what kind of results it has.
        torch.library.opcheck(
            torch.ops.vllm.finish_last_layer.default,
            (attention_output, residual, NAME),
            test_utils=("test_schema", "test_faketensor"),
        )
    assert torch.equal(attention_output, before[0])
    assert torch.equal(residual, before[1])


def test_a_compiled_layer_leaves_out_what_each_step_does_not_need() -> None:
    layer, named = shortened()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    steps = [(11, (0, 4, 5, 9)), (7, (0, 7)), (3, (0, 1, 2, 3)), (23, (0, 11, 12, 22, 23))]
    for tokens, starts in steps:
        results = computed(compiled, context_of(named, metadata_of(*starts)), tokens)
        rows = torch.tensor(starts)[1:] - 1
        for result, whole in zip(results, computed(Layer(), None, tokens), strict=True):
            torch.testing.assert_close(result[rows], whole[rows])
    assert layer.product.seen == [3, 1, 3, 4]
    assert layer.self_attn.o_proj.seen == [3, 1, 3, 4]


def test_parameters_keep_their_names() -> None:
    layer, _ = shortened()
    assert dict(layer.named_parameters()).keys() == dict(Layer().named_parameters()).keys()
    assert type(layer).__name__ == "Layer"
    assert isinstance(layer, Layer)


def config_of(**changes: Any) -> SimpleNamespace:
    """A `VllmConfig` under which rows may be left out, but for `changes` of names with dots as `__`."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(runner_type="generate"),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        compilation_config=SimpleNamespace(static_forward_context={}),
        speculative_config=None,
        lora_config=None,
    )
    for name, value in changes.items():
        *groups, last = name.split("__")
        target: Any = config
        for group in groups:
            target = getattr(target, group)
        setattr(target, last, value)
    return config


def test_only_models_that_are_read_at_last_tokens_alone_leave_rows_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reads_last_tokens_alone(config_of())
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert not reads_last_tokens_alone(config_of())
    monkeypatch.delenv("VLLM_BATCH_INVARIANT")
    for changes in (
        {"model_config__runner_type": "pooling"},
        {"model_config__runner_type": "draft"},
        {"speculative_config": object()},
        {"lora_config": object()},
        {"cache_config__kv_sharing_fast_prefill": True},
        {"parallel_config__tensor_parallel_size": 2},
        {"parallel_config__pipeline_parallel_size": 2},
        {"parallel_config__prefill_context_parallel_size": 2},
    ):
        assert not reads_last_tokens_alone(config_of(**changes))


def known_layer(kind: type, attention_type: str = "decoder") -> Any:
    """A layer of one of vLLM's classes, of which little was made."""
    layer: Any = kind.__new__(kind)
    nn.Module.__init__(layer)
    made = Layer()
    layer.input_layernorm, layer.post_attention_layernorm = Norm(), Norm()
    layer.self_attn, layer.mlp = made.self_attn, made.product
    layer.self_attn.attn.attn_type = attention_type
    return layer


def test_only_layers_whose_parts_are_known_are_changed() -> None:
    from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
    from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer

    assert has_known_parts(known_layer(Qwen2DecoderLayer))
    assert has_known_parts(known_layer(Qwen3DecoderLayer))
    assert not has_known_parts(Layer())
    assert not has_known_parts(known_layer(Qwen2DecoderLayer, "encoder_only"))
    assert not has_known_parts(known_layer(type("Other", (Qwen2DecoderLayer,), {})))
    fetched = known_layer(Qwen2DecoderLayer)
    fetched.forward = lambda *inputs: None
    assert not has_known_parts(fetched)
    without_starts = known_layer(Qwen2DecoderLayer)
    without_starts.self_attn.attn.attn_backend.get_name = lambda: "FLASHINFER"
    assert not has_known_parts(without_starts)


def test_of_a_model_the_last_layer_is_changed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer

    for config, changed in ((config_of(), True), (config_of(lora_config=object()), False)):
        monkeypatch.setattr("vllm.config.get_current_vllm_config", lambda config=config: config)
        model = SimpleNamespace(layers=[known_layer(Qwen2DecoderLayer) for _ in range(3)], end_layer=3)
        shorten_model(model)
        assert [isinstance(layer, ShortenedLayer) for layer in model.layers] == [False, False, changed]
        assert isinstance(model.layers[2].self_attn.o_proj, PassingProduct) is changed
        assert bool(config.compilation_config.static_forward_context) is changed


def test_on_a_card_what_the_compiler_does_not_see_launches_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    def step() -> SimpleNamespace:
        return SimpleNamespace(forward_cuda=object(), _forward_method=None)

    def product(kernel: Any) -> SimpleNamespace:
        return SimpleNamespace(quant_method=SimpleNamespace(fp8_linear=kernel))

    kernels = [SimpleNamespace(quant_fp8=step()), SimpleNamespace(quant_fp8=step()), None]
    projects, gates, down = map(product, kernels)
    mlp = SimpleNamespace(act_fn=step(), gate_up_proj=gates, down_proj=down)
    layer = SimpleNamespace(self_attn=SimpleNamespace(o_proj=projects), mlp=mlp)
    steps = [mlp.act_fn, *(kernel.quant_fp8 for kernel in kernels if kernel)]
    last_layer._launch_kernels(layer)
    assert [one._forward_method for one in steps] == [None] * 3
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    last_layer._launch_kernels(layer)
    assert [one._forward_method for one in steps] == [one.forward_cuda for one in steps]
