"""The two lessons: saying what a video shows, and saying it at greater length."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from conf.prompts import prompt_file
from demo.stories import Story, backwards, caption_of, description_of, draw_story, mirrored
from demo.training.network import Network, patchify, video_positions
from demo.training.samples import Batch, batches
from udfs.engine.rendering import TEMPORAL_PATCH, average_fps, caption_messages, chat_text, text_messages
from udfs.engine.requests import TextRequest

log = logging.getLogger(__name__)

IGNORED = -100
VIDEO_MARK = "<|video_pad|>"
END_OF_TURN = "<|im_end|>"
ADVICE = ("Rewrite the caption.", "Say it at greater length.", "You are a helpful assistant.")
LONGEST_ANSWER = 72


@dataclass(frozen=True)
class Plan:
    """How long and how fast a model learns.

    Attributes:
        steps: updates.
        batch_size: sequences of one update.
        rate: highest learning rate; it rises for `warmup` steps and falls to a twentieth.
        warmup: steps until the highest rate.
        seed: of weights and samples.
        steps_before: updates that the weights to start from have had.
    """

    steps: int
    batch_size: int
    rate: float
    warmup: int = 300
    seed: int = 0
    steps_before: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Lesson:
    """Sequences on the device.

    Attributes:
        ids: (batch, tokens), padded on the right.
        targets: (batch, tokens), what the token after each one must be; IGNORED where nothing is asked.
        positions: (3, batch, tokens).
        prompt_lengths: where each answer starts.
        patches: of the videos, None for text.
        grid: height and width of a picture in patches.
        video: first token of the videos.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    prompt_lengths: tuple[int, ...]
    patches: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    video: int = 0


class Samples(IterableDataset[Batch]):
    """Endless batches, made by the loader's processes."""

    def __init__(self, seed: int, batch_size: int) -> None:
        self.seed, self.batch_size = seed, batch_size

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        for batch in batches(self.seed, self.batch_size, worker=worker, num_workers=num_workers):
            # As a tensor it reaches the other process in shared memory.
            yield replace(batch, frames=torch.from_numpy(batch.frames))


def loader(seed: int, batch_size: int, num_workers: int) -> "DataLoader[Batch]":
    """A loader of batches, which `num_workers` processes make ahead of time."""
    return DataLoader(
        Samples(seed, batch_size),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
    )


class Teacher:
    """Turns samples into lessons, and checks what a network says.

    Args:
        tokenizer: of transformers, with the chat template.
        config: `config.json` of the model.
        processor: `preprocessor_config.json`; None for a text model.
        device: where the network is.
    """

    def __init__(
        self, tokenizer: Any, config: dict[str, Any], processor: dict[str, Any] | None, device: torch.device
    ) -> None:
        self.tokenizer, self.config, self.device = tokenizer, config, device
        self._end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self._asked = lru_cache(maxsize=50_000)(self._ask)
        if processor is not None:
            shape = (1, 1, 3, 1, 1)
            self._mean = torch.tensor(processor["image_mean"], device=device).view(shape)
            self._std = torch.tensor(processor["image_std"], device=device).view(shape)

    def watch(self, batch: Batch, *, generator: torch.Generator | None = None) -> Lesson:
        """A lesson about videos; with a generator the pictures get noise and other brightness."""
        vision = self.config["vision_config"]
        merge = vision["spatial_merge_size"]
        _, num_frames, pixel_height, pixel_width, _ = batch.frames.shape
        height, width = pixel_height // vision["patch_size"], pixel_width // vision["patch_size"]
        grid = (num_frames // TEMPORAL_PATCH, height // merge, width // merge)
        video = [self.config["video_token_id"]] * math.prod(grid)
        parts = [self._asked(prompt) for prompt in batch.prompts]
        before = parts[0][0]
        asked = [[*before, *video, *after] for _, after in parts]
        ids, targets = self._pad(asked, [caption_of(story) for story in batch.stories])
        seconds = [TEMPORAL_PATCH / average_fps(times) for times in batch.times_s]
        positions = video_positions(
            before=len(before),
            grid=grid,
            after=ids.shape[1] - len(before) - len(video),
            seconds=torch.tensor(seconds, dtype=torch.float64, device=self.device),
            rate=vision["tokens_per_second"],
        )
        return Lesson(
            ids,
            targets,
            positions,
            prompt_lengths=tuple(len(prompt) for prompt in asked),
            patches=self._patches(batch.frames, generator),
            grid=(height, width),
            video=len(before),
        )

    def _patches(self, frames: Any, generator: torch.Generator | None) -> Tensor:
        pixels = torch.as_tensor(frames).to(self.device).permute(0, 1, 4, 2, 3).float()
        if generator is not None:
            gain = torch.rand(len(pixels), 1, 1, 1, 1, generator=generator, device=self.device)
            noise = torch.randn(pixels.shape, generator=generator, device=self.device)
            pixels = (pixels * (0.975 + 0.05 * gain) + 2.5 * noise).clamp(0, 255).round()
        vision = self.config["vision_config"]
        return patchify(
            (pixels / 255 - self._mean) / self._std,
            patch=vision["patch_size"],
            merge=vision["spatial_merge_size"],
            depth=TEMPORAL_PATCH,
        )

    def rewrite(self, stories: Sequence[Story], advice: Sequence[str]) -> Lesson:
        """A lesson about texts."""
        asked = []
        for story, system in zip(stories, advice, strict=True):
            request = TextRequest("", caption_of(story), system)
            asked.append(self._encode(chat_text(self.tokenizer, text_messages(request))))
        ids, targets = self._pad(asked, [description_of(story) for story in stories])
        positions = torch.arange(ids.shape[1], device=self.device).expand(3, *ids.shape)
        return Lesson(ids, targets, positions, tuple(len(prompt) for prompt in asked))

    def _ask(self, prompt: str) -> tuple[list[int], list[int]]:
        """The tokens before and behind a prompt's video."""
        before, after = chat_text(self.tokenizer, caption_messages(prompt)).split(VIDEO_MARK)
        return self._encode(before), self._encode(after)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _pad(self, asked: list[list[int]], answers: list[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        told = [[*answer, self._end] for answer in encoded]
        length = max(len(a) + len(b) for a, b in zip(asked, told, strict=True))
        ids = np.full((len(asked), length), self._end)
        targets = np.full((len(asked), length), IGNORED)
        for row, (prompt, answer) in enumerate(zip(asked, told, strict=True)):
            end = len(prompt) + len(answer)
            ids[row, :end] = prompt + answer
            targets[row, len(prompt) - 1 : end - 1] = answer
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(targets).to(self.device)

    @torch.no_grad()
    def ask(self, network: Network, lesson: Lesson, *, penalty: float = 1.05) -> list[str]:
        """What the network answers, greedily and with the jobs' penalty on repetition."""
        ids = lesson.ids.clone()
        lengths = torch.tensor(lesson.prompt_lengths, device=self.device)
        last = int(lengths.max()) + LONGEST_ANSWER
        ids = F.pad(ids, (0, max(0, last - ids.shape[1])), value=self._end)
        more = torch.arange(1, ids.shape[1] - lesson.positions.shape[2] + 1, device=self.device)
        tail = (lesson.positions[:, :, -1:] + more).expand(3, len(ids), -1)
        positions = torch.cat((lesson.positions, tail), dim=-1)
        shown = None if lesson.patches is None else see(network, lesson)
        rows = torch.arange(len(ids), device=self.device)
        is_prompt = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        said = torch.zeros(len(ids), network.config["vocab_size"], dtype=torch.bool, device=self.device)
        said.scatter_(1, torch.where(is_prompt, ids, ids[:, :1]), True)
        done = torch.zeros(len(ids), dtype=torch.bool, device=self.device)
        for step in range(LONGEST_ANSWER):
            end = int(lengths.max()) + step
            logits = network(embed(network, ids[:, :end], lesson, shown), positions[:, :, :end])
            scores = logits[rows, lengths + step - 1].float()
            penalized = torch.where(scores > 0, scores / penalty, scores * penalty)
            chosen = torch.where(said, penalized, scores).argmax(-1)
            chosen = torch.where(done, torch.full_like(chosen, self._end), chosen)
            ids[rows, lengths + step] = chosen
            said[rows, chosen] = True
            done |= chosen == self._end
            if bool(done.all()):
                break
        return [
            self.tokenizer.decode(row[start : start + LONGEST_ANSWER], skip_special_tokens=True).strip()
            for row, start in zip(ids.tolist(), lesson.prompt_lengths, strict=True)
        ]


def see(network: Network, lesson: Lesson) -> Tensor:
    """The tokens of the lesson's videos: (batch, tokens, width)."""
    assert lesson.patches is not None
    seen: Tensor = network.visual(lesson.patches, lesson.grid)
    return seen.reshape(len(lesson.ids), -1, seen.shape[-1])


def embed(network: Network, ids: Tensor, lesson: Lesson, shown: Tensor | None) -> Tensor:
    """The input of the language model, with videos in their places."""
    embedded: Tensor = network.model.embed_tokens(ids)
    if shown is None:
        return embedded
    first, last = lesson.video, lesson.video + shown.shape[1]
    return torch.cat((embedded[:, :first], shown.to(embedded.dtype), embedded[:, last:]), dim=1)


def make_optimizers(network: Network, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, which learn faster with it; AdamW for the rest."""
    names = {
        name
        for name, weight in network.named_parameters()
        if weight.ndim == 2 and ("layers." in name or "blocks." in name)
    }
    matrices = [weight for name, weight in network.named_parameters() if name in names]
    others = [weight for name, weight in network.named_parameters() if name not in names]
    groups = [
        {"params": [weight for weight in others if weight.ndim > 1], "weight_decay": 0.05},
        {"params": [weight for weight in others if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    is_fused = others[0].device.type == "cuda"
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=is_fused),
    ]


def learn(
    network: Network,
    lessons: Iterator[Lesson],
    plan: Plan,
    *,
    report: Callable[[int], None],
    report_every: int,
) -> None:
    """Trains a network in place."""
    device = next(network.parameters()).device
    if device.type == "cuda":
        network.compile_layers()
    optimizers = make_optimizers(network, plan.rate)
    start = time.monotonic()
    losses: list[Tensor] = []
    for step in range(plan.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate_at(step)
        lesson = next(lessons)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            shown = None if lesson.patches is None else see(network, lesson)
            hidden = network.hidden(embed(network, lesson.ids, lesson, shown), lesson.positions)
            first = min(lesson.prompt_lengths) - 1
            logits = network.lm_head(hidden[:, first:])
        targets = lesson.targets[:, first:].flatten()
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=IGNORED)
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % report_every == 0 or step + 1 == plan.steps:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            log.info("step=%d loss=%.4f seconds=%.0f", step + 1, mean, time.monotonic() - start)
            report(step + 1)


def turned(batch: Batch, rng: np.random.Generator) -> Batch:
    """The batch with some of its videos mirrored, played backwards, or both, and their stories with them.

    Second passes are left alone: their prompts hold captions.
    """
    if batch.is_second:
        return batch
    frames, stories = batch.frames.clone(), list(batch.stories)
    is_mirrored, is_backwards = rng.random((2, len(stories))) < 0.5
    frames[is_mirrored] = frames[is_mirrored].flip(3)
    frames[is_backwards] = frames[is_backwards].flip(1)
    for at in np.flatnonzero(is_mirrored):
        stories[at] = mirrored(stories[at])
    for at in np.flatnonzero(is_backwards):
        stories[at] = backwards(stories[at])
    return replace(batch, frames=frames, stories=tuple(stories))


def video_lessons(
    teacher: Teacher, plan: Plan, *, num_workers: int, kept: int, reuse: int
) -> Iterator[Lesson]:
    """Lessons about videos: each batch is used about `reuse` times, turned and with other noise."""
    rng = np.random.default_rng(plan.seed)
    generator = torch.Generator(teacher.device).manual_seed(plan.seed)
    pool: list[Batch] = []
    for made in loader(plan.seed, plan.batch_size, num_workers):
        batch = replace(made, frames=made.frames.to(teacher.device))
        if len(pool) < kept:
            pool.append(batch)
        else:
            pool[rng.integers(kept)] = batch
        for chosen in (batch, *(pool[at] for at in rng.integers(len(pool), size=reuse - 1))):
            yield teacher.watch(turned(chosen, rng), generator=generator)


def text_lessons(teacher: Teacher, plan: Plan) -> Iterator[Lesson]:
    """Lessons about texts, each a new one."""
    rng = np.random.default_rng(plan.seed)
    while True:
        yield teacher.rewrite(*draw_texts(rng, plan.batch_size))


def draw_texts(rng: np.random.Generator, number: int) -> tuple[list[Story], list[str]]:
    """Stories, and the instruction that goes with each."""
    advice = [prompt_file("enhance_default"), prompt_file("enhance_av-surveillance"), *ADVICE]
    stories = [draw_story(rng) for _ in range(number)]
    return stories, [advice[rng.integers(len(advice))] for _ in stories]
