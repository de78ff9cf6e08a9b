"""What transformers makes of a request, in float32 and at the positions of the models' own code."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udfs.engine.requests import CaptionRequest

MERGE = 2
TEMPORAL_PATCH = 2
SMALLEST_MARGIN = 1e-4
"""Where the two best tokens are closer than this, either may win."""


@dataclass(frozen=True)
class Greedy:
    """A greedy answer.

    Attributes:
        token_ids: with the one that ended it.
        margins: by how much each token's logit is above the next best.
    """

    token_ids: list[int]
    margins: list[float]

    @property
    def num_certain(self) -> int:
        """Tokens before the first that is a close race."""
        close = [at for at, margin in enumerate(self.margins) if margin < SMALLEST_MARGIN]
        return close[0] if close else len(self.token_ids)


class VisionReference:
    """A vision model of transformers with its processor; Qwen2.5-VL or Qwen3-VL."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)
        self.model, self.loading = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        self.model.eval()
        self.video_id = self.model.config.video_token_id
        self.is_qwen3 = self.model.config.model_type == "qwen3_vl"

    def inputs(self, request: CaptionRequest, prompt: str) -> dict[str, Any]:
        """What the processor makes of the frames and of the chat about them."""
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
        text = self.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        more: dict[str, Any] = {}
        if self.is_qwen3:
            # transformers 4.57 takes the outer start and end away, 5.22 leaves that to its caller.
            text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
            milliseconds = np.rint(1000 * (request.times_s - request.times_s[0])).astype(int).tolist()
            metadata = {"fps": 1000.0, "frames_indices": milliseconds, "total_num_frames": len(milliseconds)}
            more = {"video_metadata": [metadata], "do_sample_frames": False}
        return dict(
            self.processor(text=[text], videos=[request.frames], do_resize=False, return_tensors="pt", **more)
        )

    def positions(self, inputs: dict[str, Any], times_s: np.ndarray) -> torch.Tensor:
        """Time, row and column of each token, (3, tokens), as in the code that the models came with.

        Text counts on along all three axes, and starts behind the largest of a video's. Qwen2.5 floors the
        time of a pair of frames to its grid; Qwen3 writes the times into the text, so that its pairs of
        frames each start anew.
        """
        ids = inputs["input_ids"][0].tolist()
        times, rows, columns = (inputs["video_grid_thw"][0] // torch.tensor([1, MERGE, MERGE])).tolist()
        pairs = np.arange(times)
        if self.is_qwen3:
            pairs = np.zeros(times)
        else:
            rate = self.model.config.vision_config.tokens_per_second
            seconds = TEMPORAL_PATCH * (times_s[-1] - times_s[0]) / (len(times_s) - 1)
            pairs = np.floor(pairs * seconds * rate + 1e-6)
        grid = np.stack(np.meshgrid(pairs, np.arange(rows), np.arange(columns), indexing="ij")).reshape(3, -1)
        run = rows * columns if self.is_qwen3 else times * rows * columns
        found: list[np.ndarray] = []
        at = start = 0
        while at < len(ids):
            if ids[at] == self.video_id:
                found.append(grid[:, :run] + start)
                grid = grid[:, run:]
                at += run
            else:
                found.append(np.full((3, 1), start))
                at += 1
            start = int(found[-1].max()) + 1
        return torch.from_numpy(np.concatenate(found, axis=1)).long()

    def answer(self, inputs: dict[str, Any], positions: torch.Tensor, max_tokens: int) -> Greedy:
        """The answer of transformers' own `generate` at these positions."""
        delta = torch.tensor([[int(positions.max()) + 1 - positions.shape[1]]])
        self.model.model.get_rope_index = lambda *_, **__: (positions[:, None], delta)
        return greedy(partial(self.model.generate, **inputs), self.model, inputs, max_tokens)


class TextReference:
    """A text model of transformers with its tokenizer."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model, self.loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        self.model.eval()

    def inputs(self, prompt: str, system: str) -> dict[str, Any]:
        """The tokens of the chat."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return dict(self.tokenizer(text, return_tensors="pt"))

    def answer(self, inputs: dict[str, Any], max_tokens: int) -> Greedy:
        """The answer of transformers' own `generate`."""
        return greedy(partial(self.model.generate, **inputs), self.model, inputs, max_tokens)


def greedy(generate: Any, model: Any, inputs: dict[str, Any], max_tokens: int) -> Greedy:
    """Lets a model answer with its best tokens."""
    threads = torch.get_num_threads()
    # More than one would contend with the engine's, and small matrices gain nothing from them.
    torch.set_num_threads(1)
    with torch.no_grad():
        made = generate(
            do_sample=False,
            max_new_tokens=max_tokens,
            repetition_penalty=1.0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    torch.set_num_threads(threads)
    length = inputs["input_ids"].shape[1]
    best = [step[0].topk(2).values for step in made.logits]
    return Greedy(made.sequences[0, length:].tolist(), [float(two[0] - two[1]) for two in best])
