"""What vLLM makes of a window, for both families of models: pixels, token ids, times and positions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoVideoProcessor

from conf.variants import DEMO
from tests.engine_fixtures import CHECKPOINTS, DemoModels
from tests.udfs.engine.parity import window_requests
from tests.udfs.engine.qwen3_checkpoint import make_qwen3_checkpoint
from tests.udfs.engine.reference import VisionReference
from tests.udfs.engine.render_windows import Rendered, RenderJob, render_windows
from tests.udfs.engine.requests_maker import caption_request, colour_frames
from udfs.engine.requests import CaptionRequest
from udfs.engine.worker import FRAMES_MARK, normalized, patches

TIMES = ([0.0, 0.5, 1.0, 1.5], [5.0, 5.4, 5.9, 6.4, 7.0, 7.5, 8.1], [2.0, 2.0334, 2.0667, 2.1])
SIDE = 224
DTYPES = {"qwen3": torch.float32, "qwen25": torch.bfloat16, "trained": torch.float32}


def uneven_windows() -> list[CaptionRequest]:
    return [
        caption_request(f"w{k}", frames=colour_frames(k, len(times), SIDE, SIDE), times_s=np.array(times))
        for k, times in enumerate(TIMES)
    ]


@pytest.fixture(scope="module")
def qwen3(demo_models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3_checkpoint(
        tmp_path_factory.mktemp("qwen3") / "model", demo_models.vision, with_weights=True
    )


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionRequest]:
    return window_requests(tmp_path_factory.mktemp("filmed"), DEMO)


@pytest.fixture(scope="module")
def rendered(
    demo_models: DemoModels,
    qwen3: Path,
    filmed: list[CaptionRequest],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Rendered]]:
    """All in one process, since starting one takes longer than rendering."""
    jobs = {
        "qwen3": RenderJob(str(qwen3), "float32", uneven_windows()),
        "qwen25": RenderJob(str(demo_models.vision), "bfloat16", uneven_windows()),
        "trained": RenderJob(str(CHECKPOINTS / DEMO.caption_model_id), "float32", filmed),
    }
    jobs |= {f"{name} as bytes": replace(job, takes_bytes=True) for name, job in jobs.items()}
    done = render_windows(list(jobs.values()), tmp_path_factory.mktemp("rendered"))
    return dict(zip(jobs, done, strict=True))


def test_qwen3_reads_the_real_time_of_each_pair_of_frames(
    rendered: dict[str, list[Rendered]], qwen3: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    shown = [tokenizer.decode(window.token_ids) for window in rendered["qwen3"]]
    pads = "<|video_pad|>" * (SIDE // 32) ** 2
    expected = [["0.2", "1.2"], ["0.2", "1.1", "2.2", "3.1"], ["0.0", "0.1"]]
    for text, seconds in zip(shown, expected, strict=True):
        video = "".join(f"<{s} seconds><|vision_start|>{pads}<|vision_end|>" for s in seconds)
        assert f"<|im_start|>user\n{video}Describe the video in detail.<|im_end|>" in text
    assert rendered["qwen3"][1].tensors["timestamps"] == pytest.approx([0.2, 1.15, 2.25, 3.1])


def test_qwen25_knows_the_real_spacing_in_bfloat16_too(rendered: dict[str, list[Rendered]]) -> None:
    windows = rendered["qwen25"]
    seconds = [float(window.tensors["second_per_grid_ts"]) for window in windows]
    assert seconds == pytest.approx([1.0, 2 * 3.1 / 6, 2 * 0.1 / 3], abs=1e-6)
    video_id = max(windows[0].token_ids)
    assert [window.token_ids.count(video_id) for window in windows] == [2 * 64, 4 * 64, 2 * 64]


@pytest.mark.parametrize("name", ["qwen3", "trained"])
def test_pixels_tokens_and_positions_are_those_of_transformers(
    rendered: dict[str, list[Rendered]], qwen3: Path, filmed: list[CaptionRequest], name: str
) -> None:
    folder, requests = {
        "qwen3": (qwen3, uneven_windows()),
        "trained": (CHECKPOINTS / DEMO.caption_model_id, filmed),
    }[name]
    reference = VisionReference(folder)
    for request, window in zip(requests, rendered[name], strict=True):
        inputs = reference.inputs(request, request.prompt)
        pixels = torch.from_numpy(window.tensors["pixel_values_videos"])
        assert torch.equal(pixels, inputs["pixel_values_videos"])
        assert window.token_ids == inputs["input_ids"][0].tolist()
        assert np.array_equal(window.positions, reference.positions(inputs, request.times_s))


@pytest.mark.parametrize("name", DTYPES)
def test_windows_for_a_model_that_prepares_pixels_differ_in_nothing_else(
    rendered: dict[str, list[Rendered]], qwen3: Path, demo_models: DemoModels, name: str
) -> None:
    folder = qwen3 if name == "qwen3" else demo_models.vision
    vision = AutoVideoProcessor.from_pretrained(folder)
    for usual, window in zip(rendered[name], rendered[f"{name} as bytes"], strict=True):
        assert window.prompt_text == usual.prompt_text
        assert window.token_ids == usual.token_ids
        assert np.array_equal(window.positions, usual.positions)
        pixels, layout = window.tensors.pop("pixel_values_videos"), window.tensors.pop(FRAMES_MARK)
        (frames,) = pixels
        pixels = patches(frames, window.tensors["video_grid_thw"].tolist(), layout.tolist()).numpy()
        assert pixels.dtype == np.uint8
        floats = normalized(torch.from_numpy(pixels), vision.image_mean, vision.image_std)
        floats = floats.to(DTYPES[name]).float()
        assert np.array_equal(floats.numpy(), usual.tensors.pop("pixel_values_videos"))
        assert window.tensors.pop("pixels_are_bytes").tolist() == usual.tensors["video_grid_thw"].tolist()
        assert set(window.tensors) == set(usual.tensors)
        for key, value in usual.tensors.items():
            assert np.array_equal(window.tensors[key], value)
