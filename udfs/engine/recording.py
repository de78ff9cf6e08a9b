"""Records of what reached vLLM, for tests and auditors: one JSON and one npz file per pass.

{record_dir}/{request key}#{number}/stage{1,2}.json   request_key, prompt_text, token_ids, times_s,
                                                      mm_kwargs (small ones), answer
{record_dir}/{request key}#{number}/stage{1,2}.npz    frames, times_s, and every tensor that the
                                                      processor made (pixel_values_videos, …)
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from udfs.engine.requests import CaptionRequest, Request
from udfs.engine.vllm_pattern import video_item
from udfs.engine.worker import FRAMES_MARK, patches

SMALL = 64


class Record:
    """The files of one pass."""

    def __init__(self, folder: Path, stage: int) -> None:
        self.folder = folder
        self.stage = stage
        self.content: dict[str, Any] = {}

    def add_answer(self, answer: Any) -> None:
        """Adds what the model said and writes the JSON file again."""
        self.content["answer"] = _told(answer)
        self.write()

    def write(self) -> None:
        """Writes the JSON file in one step, so that a reader finds it whole or not at all."""
        path = self.folder / f"stage{self.stage}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self.content, ensure_ascii=False, indent=1), encoding="utf-8")
        part.replace(path)


def record_pass(
    record_dir: str | None, name: str, request: Request, stage: int, text: str, rendered: Any, answer: Any
) -> Record | None:
    """Writes what one pass hands to vLLM; returns None when nothing is to be recorded."""
    if record_dir is None:
        return None
    folder = Path(record_dir) / re.sub(r"[^\w.#=-]", "_", name)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _processed(rendered)
    arrays = {key: value for key, value in tensors.items() if isinstance(value, np.ndarray)}
    if isinstance(request, CaptionRequest):
        arrays |= {"frames": request.frames, "times_s": request.times_s}
    np.savez(folder / f"stage{stage}.npz", allow_pickle=False, **arrays)
    record = Record(folder, stage)
    record.content = {
        "request_key": request.request_key,
        "stage": stage,
        "prompt_text": text,
        "token_ids": list(rendered["prompt_token_ids"]),
        "processed": {key: _shown(value) for key, value in tensors.items()},
        "times_s": request.times_s.tolist() if isinstance(request, CaptionRequest) else None,
        "generation": asdict(request.generation),
        "answer": None if answer is None else _told(answer),
    }
    record.write()
    return record


def _told(answer: Any) -> dict[str, Any]:
    return {**asdict(answer), "output_tokens": answer.output_tokens}


def _processed(rendered: Any) -> dict[str, Any]:
    """Returns what the processor made of the video; nothing when vLLM has it in its cache already."""
    item = video_item(rendered)
    if item is None:
        return {}
    tensors = {key: element.data for key, element in item.items()}
    if FRAMES_MARK in tensors:
        grid, layout = tensors["video_grid_thw"].tolist(), tensors[FRAMES_MARK].tolist()
        (frames,) = tensors["pixel_values_videos"]
        tensors["pixel_values_videos"] = patches(frames, grid, layout)
    return {key: _plain(value) for key, value in tensors.items()}


def _plain(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _shown(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return value.tolist() if value.size <= SMALL else {"shape": list(value.shape), "dtype": str(value.dtype)}
