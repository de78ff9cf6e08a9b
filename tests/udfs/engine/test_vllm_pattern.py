"""Windows made from one that vLLM has rendered."""

import numpy as np
import pytest
import torch

from udfs.engine.vllm_pattern import GRID, PIXELS, Pattern, video_item
from udfs.engine.worker import FRAMES_MARK

LAYOUT = (2, 2, 1)


@pytest.mark.parametrize("videos", [1, 3])
def test_frames_stay_where_they_are_until_the_model_takes_them(videos: int) -> None:
    from vllm.multimodal.inputs import (
        MultiModalFieldConfig,
        MultiModalKwargsItem,
        MultiModalKwargsItems,
        PlaceholderRange,
    )
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    grid = torch.tensor([[1, 2, 3]])
    fields = {
        PIXELS: MultiModalFieldConfig.flat_from_sizes("video", grid.prod(-1)),
        GRID: MultiModalFieldConfig.batched("video", keep_on_cpu=True),
    }
    values = {PIXELS: torch.zeros(6, 24), GRID: grid}
    (item,) = MultiModalKwargsItems.from_hf_inputs(values, fields)["video"]
    first = {
        "prompt_token_ids": [1, 2, 2, 3],
        "mm_placeholders": {"video": [PlaceholderRange(offset=1, length=2)]},
        "mm_kwargs": MultiModalKwargsItems({"video": [item]}),
    }
    pattern = Pattern.of(first, "after", lambda _: [3])
    assert pattern is not None
    frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    items: list[MultiModalKwargsItem] = []
    for number in range(videos):
        window = pattern.filled(
            frames + number, LAYOUT, seconds=1.0, text="", tail=[3], cache_key=str(number)
        )
        items.append(video_item(window))
    # Whatever a batch has elsewhere, vLLM would bring to this device, whose tensors hold no values.
    ((_, _, batch),) = group_and_batch_mm_kwargs([("video", one) for one in items], device="meta")
    assert len(batch[PIXELS]) == videos
    for number, (one, pixels) in enumerate(zip(items, batch[PIXELS], strict=True)):
        assert np.array_equal(pixels.numpy(), frames + number)
        assert pixels.data_ptr() == one[PIXELS].data[0].data_ptr(), "copied"
    assert batch[FRAMES_MARK].tolist() == [list(LAYOUT)] * videos
    usual = group_and_batch_mm_kwargs([("video", item)], device="meta")
    assert next(usual)[2][PIXELS].device == torch.device("meta")
