"""What the demo's models learn from, and that they compute what transformers computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conf.variants import DEMO
from demo.drawing import Scene, stage
from demo.make_checkpoints import (
    TEXT_ID,
    TRAINED_VISION,
    VISION_ID,
    train_demo_tokenizer,
    vision_config,
    vision_processor_configs,
    write_checkpoint,
)
from demo.stories import backwards, caption_of, draw_story, mirrored
from demo.training.__main__ import load_tokenizer, main, rounded, with_rounded_weights
from demo.training.learn import Lesson, Teacher, embed, see, turned
from demo.training.network import Network
from demo.training.samples import TRAINING, Batch, make_batch, make_window
from udfs.engine.rendering import caption_messages, chat_text
from udfs.resize import fit_size

CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"


def scenes(number: int) -> list[tuple[Any, Scene]]:
    rng = np.random.default_rng(1)
    drawn = []
    for k in range(number):
        story = draw_story(rng)
        size = [(256, 192), (192, 256), (320, 180)][k % 3]
        drawn.append((story, stage(story, TRAINING, size=size, rng=rng)))
    return drawn


def test_shapes_stay_in_the_picture_and_do_what_their_story_says() -> None:
    for story, scene in scenes(300):
        width, height = scene.size
        for actor, sprite in zip(story.actors, scene.sprites, strict=True):
            states = [sprite.state(at) for at in np.linspace(0, 1, 21)]
            for x, y, radius, _ in states:
                reach = radius * min(scene.size)
                assert x * width - reach >= -1
                assert x * width + reach <= width + 1
                assert y * height - reach >= -1
                assert y * height + reach <= height + 1
            (x0, y0, r0, there0), (x1, y1, r1, there1) = states[0], states[-1]
            seen = {
                "moves left": x1 < x0 - 0.03,
                "moves right": x1 > x0 + 0.03,
                "moves up": y1 < y0 - 0.03,
                "moves down": y1 > y0 + 0.03,
                "grows": r1 > 1.5 * r0,
                "shrinks": r1 < r0 / 1.5,
                "appears": there1 and not there0,
                "vanishes": there0 and not there1,
            }
            assert {action for action, happened in seen.items() if happened} == set(actor.actions)


def test_a_training_window_is_sampled_and_sized_as_the_jobs_do_it() -> None:
    window = make_window(np.random.default_rng(3), num_sampled=10, size=(320, 180))
    height, width = fit_size(180, 320, num_frames=10, variant=DEMO)
    assert window.frames.shape == (10, height, width, 3)
    assert np.all(np.diff(window.times_s) > 0)
    assert window.times_s[-1] == pytest.approx(5, abs=0.6)


def test_the_same_seed_gives_the_same_samples() -> None:
    first, again, other = make_batch((1, 2), 2), make_batch((1, 2), 2), make_batch((1, 3), 2)
    assert np.array_equal(first.frames, again.frames)
    assert (first.prompts, first.stories) == (again.prompts, again.stories)
    assert first.stories != other.stories


def test_turned_videos_keep_stories_that_are_true_of_them() -> None:
    made = make_batch((5, 1), 2)
    batch = replace(made, frames=torch.from_numpy(made.frames))
    seen = set()
    for seed in range(8):
        again = turned(batch, np.random.default_rng(seed))
        for frames, story, own, was in zip(
            again.frames, again.stories, batch.frames, batch.stories, strict=True
        ):
            turns = [
                (own, was),
                (own.flip(2), mirrored(was)),
                (own.flip(0), backwards(was)),
                (own.flip(0, 2), backwards(mirrored(was))),
            ]
            (turn,) = [at for at, (shown, _) in enumerate(turns) if torch.equal(shown, frames)]
            assert story == turns[turn][1]
            seen.add(turn)
    assert seen == {0, 1, 2, 3}
    second = replace(batch, is_second=True)
    assert turned(second, np.random.default_rng(0)) is second


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network]:
    """A checkpoint of the trained model's architecture with seeded weights, and its network."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    network = with_rounded_weights(Network(vision_config(TRAINED_VISION)))
    tokenizer = train_demo_tokenizer()
    write_checkpoint(folder, network.config, tokenizer, rounded(network), vision_processor_configs())
    return folder, network


def teacher_of(folder: Path, network: Network) -> Teacher:
    processor = vision_processor_configs()["preprocessor_config.json"]
    return Teacher(load_tokenizer(folder), network.config, processor, torch.device("cpu"))


def lesson_of(folder: Path, network: Network) -> tuple[Batch, Lesson]:
    made = make_batch((5, 1), 2)
    batch = Batch(made.frames[:, :8], made.times_s[:, :8], ("What moves?", "Describe it."), made.stories)
    return batch, teacher_of(folder, network).watch(batch)


def test_the_network_that_is_trained_computes_what_transformers_does(untrained: tuple[Path, Network]) -> None:
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    folder, network = untrained
    batch, lesson = lesson_of(folder, network)
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = network(embed(network, lesson.ids, lesson, see(network, lesson)), lesson.positions)
    for row, (frames, prompt, story) in enumerate(
        zip(batch.frames, batch.prompts, batch.stories, strict=True)
    ):
        text = chat_text(processor, caption_messages(prompt)) + caption_of(story)
        inputs = processor(text=[text], videos=[frames], do_resize=False, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        assert inputs["input_ids"][0].tolist() == lesson.ids[row, :length].tolist()
        with torch.no_grad():
            theirs = model(
                input_ids=inputs["input_ids"],
                pixel_values_videos=inputs["pixel_values_videos"],
                video_grid_thw=inputs["video_grid_thw"],
                position_ids=lesson.positions[:, row : row + 1, :length],
                attention_mask=torch.ones(1, length, dtype=torch.long),
            ).logits[0]
        torch.testing.assert_close(ours[row, :length], theirs, atol=2e-4, rtol=1e-4)


def test_the_script_trains_both_models_and_writes_their_cards(tmp_path: Path) -> None:
    small = ["--batch-size", "1", "--workers", "0", "--kept", "2", "--reuse", "2", "--test-batches", "1"]
    assert main([str(tmp_path), "--steps", "1", "--text-steps", "2", "--device", "cpu", *small]) == 0
    for model in (VISION_ID, TEXT_ID):
        assert (tmp_path / model / "model.safetensors").is_file()
        assert "unseen" in (tmp_path / model / "README.md").read_text()
    again = [str(tmp_path / "again"), "--steps", "1", "--text-steps", "0", "--device", "cpu", *small]
    assert main([*again, "--start", str(tmp_path)]) == 0
    assert (
        "1 steps and then, from their result, 1 steps"
        in (tmp_path / "again" / VISION_ID / "README.md").read_text()
    )


def test_the_committed_checkpoints_are_small() -> None:
    for model in (VISION_ID, TEXT_ID):
        assert (CHECKPOINTS / model / "model.safetensors").stat().st_size <= 5_000_000
