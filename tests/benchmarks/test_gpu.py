"""The GPU benchmark, as far as it goes without a card: its models, its work, and how it reads profiles."""

import gzip
import json
import subprocess
import threading
import time
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from benchmarks.gpu.candidates import CANDIDATES
from benchmarks.gpu.clients import cpu_s_of_thread
from benchmarks.gpu.cluster import (
    SparkOrder,
    spark_master,
    spark_properties,
    task_share,
    write_discovery,
)
from benchmarks.gpu.large_models import QWEN2_5_14B, QWEN2_5_VL_7B, QWEN3_VL_8B, LargeModel, write_large_model
from benchmarks.gpu.llm import peer_arguments
from benchmarks.gpu.profile import read_profile
from benchmarks.gpu.spark_job import copy_clips, job_flags, problems, start_s
from benchmarks.gpu.work import WORKLOADS, CaptionWorkload
from benchmarks.gpu_captions import Results, main, parse_arguments
from conf.engine import EngineSettings
from conf.loading import load_settings
from conf.prompts import prompt_file
from jobs.models import caption_engine
from jobs.session import gpu_slots_problem
from udfs.engine.rendering import chat_text, text_messages
from udfs.engine.requests import Reply
from udfs.engine.vllm_compat import Device, check_known, engine_arguments
from udfs.ordered import done


@pytest.mark.parametrize(
    ("model", "billions"),
    [(QWEN2_5_VL_7B, 8.29), (QWEN3_VL_8B, 8.77), (QWEN2_5_14B, 14.77)],
    ids=lambda value: value.repo_id if isinstance(value, LargeModel) else "",
)
def test_models_without_weights_have_as_many_parameters_as_the_published_ones(
    tmp_path: Path, model: LargeModel, billions: float
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    folder = write_large_model(model, tmp_path)
    config = AutoConfig.from_pretrained(folder)
    kind: Any = AutoModelForCausalLM if model is QWEN2_5_14B else AutoModelForImageTextToText
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in kind.from_config(config).parameters())
    assert parameters / 1e9 == pytest.approx(billions, abs=0.005)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.vocab_size
    assert tokenizer.encode("<|im_end|>") == [config.get_text_config().eos_token_id]
    if model is not QWEN2_5_14B:
        assert tokenizer.encode("<|video_pad|>") == [config.video_token_id]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (QWEN2_5_VL_7B, {"shortest_edge": 56 * 56, "longest_edge": 16_384 * 28 * 28}),
        (QWEN3_VL_8B, {"shortest_edge": 64 * 64, "longest_edge": 24_576 * 32 * 32}),
    ],
    ids=lambda value: value.repo_id if isinstance(value, LargeModel) else "",
)
def test_their_processors_allow_videos_as_large_as_the_published_ones(
    tmp_path: Path, model: LargeModel, size: dict[str, int]
) -> None:
    processor = AutoProcessor.from_pretrained(write_large_model(model, tmp_path))
    for sizes in (processor.image_processor.size, processor.video_processor.size):
        assert {name: sizes[name] for name in size} == size


def test_answers_have_the_same_lengths_in_every_run_and_windows_numbers_of_their_own(tmp_path: Path) -> None:
    work = WORKLOADS["demo"]
    assert work.lengths(50) == work.lengths(100)[:50]
    assert {min(work.lengths(500)), max(work.lengths(500))} == set(work.tokens)
    clips = work.items(tmp_path)
    ids = [window_id for _ in range(3) for window_id in work.window_ids(next(clips))]
    assert ids == ["0", "1", "2", "3", "4", "5"]
    requests = work.requests(tmp_path, 3)
    assert [request.generation.max_output_tokens for request in requests] == work.lengths(3)
    assert requests[0].frames is requests[2].frames


def test_prompts_of_texts_have_200_tokens_and_no_cache_knows_more_of_one_than_the_instruction(
    tmp_path: Path,
) -> None:
    work = WORKLOADS["qwen_text"]
    settings = work.settings(tmp_path, max_in_flight=128)
    assert (settings.kind, settings.disable_mmcache) == ("text", False), (
        "prefix caching, as vLLM's default is"
    )
    tokenizer = AutoTokenizer.from_pretrained(settings.model_path)
    requests = work.requests(tmp_path, 64)
    assert {request.generation.max_output_tokens for request in requests} == {300}
    assert {request.system for request in requests} == {prompt_file("enhance_default")}
    lengths = [len(tokenizer.encode(chat_text(tokenizer, text_messages(request)))) for request in requests]
    assert min(lengths) >= 190
    assert max(lengths) <= 210
    again = [work.items(tmp_path, run) for run in (0, 1)]
    captions = [[next(items) for _ in range(64)] for items in again]
    assert [caption for _, caption in captions[0]] == [request.prompt for request in requests]
    assert [number for number, _ in captions[0]] == [number for number, _ in captions[1]]
    beginnings = {tuple(caption.split()[:8]) for run in captions for _, caption in run}
    assert len(beginnings) == 128


def test_clients_ask_as_the_udf_does_and_get_their_rows_in_order(tmp_path: Path) -> None:
    work = WORKLOADS["demo_text"]
    asked: list[Any] = []

    def submit(request: Any) -> "Future[Reply]":
        asked.append(request)
        return done(Reply(text="well", finish_reason="length", prompt_tokens=200, output_tokens=16))

    items = list(islice(work.items(tmp_path), 1, 24, 2))
    answers = list(work.answers(items, submit, max_pending=32))
    assert [answer["window_id"] for answer in answers] == [window_id for window_id, _ in items]
    assert {answer[work.status] for answer in answers} == {"truncated"}
    assert [request.prompt for request in asked] == [caption for _, caption in items]


def test_what_one_thread_costs_is_told_apart_from_the_others() -> None:
    spent: list[float] = []
    worked, read = threading.Event(), threading.Event()

    def work() -> None:
        while time.thread_time() < 0.2:
            pass
        spent.append(time.thread_time())
        worked.set()
        read.wait()

    thread = threading.Thread(target=work, name="busy")
    thread.start()
    worked.wait()
    try:
        assert cpu_s_of_thread("busy") == pytest.approx(spent[0], abs=0.05)
    finally:
        read.set()
        thread.join()


@pytest.mark.parametrize("mode", ["gpu_alone", "peer_chunks_8"])
def test_modes_that_texts_do_not_have_are_refused_at_once(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--work", "qwen_text", "--modes", mode, "engine"])
    said = capsys.readouterr().err
    assert f"--work qwen_text has no mode {mode}; it has llm_all_at_once, engine" in said


def test_the_peer_and_the_engine_get_as_many_texts_and_may_have_as_many_in_flight() -> None:
    given = parse_arguments(["--work", "qwen_text"])
    assert (given.windows, given.peer_windows, tuple(given.modes)) == (
        1024,
        1024,
        ("llm_all_at_once", "engine"),
    )
    fewer = parse_arguments(["--work", "qwen_text", "--windows", "256"])
    assert (fewer.windows, fewer.peer_windows) == (256, 256)
    captions = parse_arguments([])
    assert (captions.windows, captions.peer_windows) == (200, 48)
    assert tuple(captions.modes) == CaptionWorkload.modes
    settings = EngineSettings(model_path="/a/model", kind="text", max_in_flight=64)
    card = Device("a card", (9, 0))
    ours, peers = engine_arguments(settings, card), peer_arguments(settings, card)
    assert ours["max_num_seqs"] == peers["max_num_seqs"] == 64
    assert ours["enable_prefix_caching"]
    assert "enable_prefix_caching" not in peers, "vLLM's default, which is on"
    assert not [name for name in peers if name.startswith(("mm_", "limit_mm"))]


@pytest.mark.parametrize("work", ["qwen", "qwen3"])
def test_a_candidate_changes_one_thing_which_vllm_knows(tmp_path: Path, work: str) -> None:
    card = Device("a card", (9, 0))
    settings = WORKLOADS[work].settings(tmp_path, fp8=True, max_in_flight=128)
    before = engine_arguments(settings, card)
    for name, candidate in CANDIDATES.items():
        check_known(candidate.arguments)
        after = engine_arguments(candidate.settings(settings), card)
        assert not before.keys() - after.keys()
        changed = {argument for argument, value in after.items() if before.get(argument) != value}
        if name == "tower_16_bits":
            changed.discard("quantization_config")
        assert len(changed) == 1, (name, changed)


def test_candidates_are_all_that_apply_or_those_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments([]).candidates == []
    every = parse_arguments(["--fp8", "--candidates"]).candidates
    assert every == list(CANDIDATES)
    of_fp8 = ("vllm_fp8", "tower_16_bits")
    assert parse_arguments(["--candidates"]).candidates == [name for name in every if name not in of_fp8]
    named = ["steps_8k", "cache_fp8"]
    assert parse_arguments(["--modes", "gpu_alone", "--candidates", *named]).candidates == named
    for arguments, told in (
        (["--modes", "engine", "--candidates"], "--candidates needs gpu_alone among the modes"),
        (["--candidates", "tower_16_bits"], "tower_16_bits needs --fp8"),
        (["--work", "qwen_text", "--candidates"], "--candidates needs gpu_alone among the modes"),
        (["--candidates", "steps_9k"], "invalid choice: 'steps_9k'"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(arguments)
        assert told in capsys.readouterr().err


def test_kernels_of_a_profile_belong_to_what_launched_them(tmp_path: Path) -> None:
    def event(name: str, category: str, start_us: float, us: float, correlation: int = 0) -> dict[str, Any]:
        args = {"correlation": correlation}
        return {"ph": "X", "name": name, "cat": category, "ts": start_us, "dur": us, "args": args}

    events = [
        event("gpu_model_runner: preprocess", "user_annotation", 0, 100),
        event("gpu_model_runner: forward", "user_annotation", 100, 100),
        event("aten::cat", "cpu_op", 10, 40),
        event("aten::add", "cpu_op", 60, 40),
        event("cudaLaunchKernel", "cuda_runtime", 50, 5, 1),
        event("cudaLaunchKernel", "cuda_runtime", 150, 5, 2),
        event("cudaLaunchKernel", "cuda_runtime", 160, 5, 3),
        event("cuLaunchKernel", "cuda_driver", 250, 5, 4),
        event("void gemm<float>(int)", "kernel", 1000, 2000, 1),
        event("gemm", "kernel", 3000, 3000, 2),
        event("norm", "kernel", 5000, 2000, 3),
        event("sample", "kernel", 9000, 1000, 4),
    ]
    with gzip.open(tmp_path / "worker.pt.trace.json.gz", "wt") as stream:
        json.dump({"traceEvents": events}, stream)
    with gzip.open(tmp_path / "front.json.gz", "wt") as stream:
        json.dump({"traceEvents": []}, stream)
    assert read_profile(tmp_path, 2) == {
        "span_ms": 4.5,
        "busy_ms": 3.5,
        "idle_before_ms": {"sampling and the rest": 1.0},
        "scopes": {
            "vision tower and inputs": {"ms": 1.0, "gemm": 1.0},
            "language model": {"ms": 2.5, "gemm": 1.5, "norm": 1.0},
            "sampling and the rest": {"ms": 0.5, "sample": 0.5},
        },
        "worker_ms": {
            "preprocess": 0.05,
            "forward": 0.05,
            "aten::cat": 0.02,
            "cudaLaunchKernel": 0.01,
            "cuLaunchKernel": 0.0,
        },
    }


def test_figures_of_an_earlier_run_are_kept_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    figures = {"mode": "gpu_alone", "device": "a card", "versions": {"vllm": "1"}, "windows_per_s": 1.23456}
    for add in (False, True, True):
        Results(path, "qwen", add=add).add_all([dict(figures), {"profile_ms_per_window": {}}], "bf16", "{}")
    written = json.loads(path.read_text())
    assert [(one["mode"], one["windows_per_s"]) for one in written["modes"]] == [
        ("gpu_alone_bf16", 1.2346)
    ] * 3
    assert all(one["profile_ms_per_window"] == {} for one in written["modes"])
    assert written["machine"]["device"] == "a card"


def order_of(folder: Path, work: str, *, cards: int, **changes: Any) -> SparkOrder:
    settings = WORKLOADS[work].settings(folder, max_in_flight=128, **changes)
    return SparkOrder.of_machine(settings, work, folder, cards=cards, windows=10)


def test_the_job_in_spark_has_the_engine_that_the_other_modes_have(tmp_path: Path) -> None:
    given = {"load_format": "dummy", "max_num_batched_tokens": 8192, "compilation_config": {"mode": 0}}
    for work, fp8, arguments in (("qwen3", True, given), ("demo", False, {})):
        order = order_of(tmp_path, work, cards=2, fp8=fp8, vllm_arguments=arguments)
        settings = load_settings(config="conf/gpu_cluster.yaml", flags=job_flags(order))
        assert caption_engine(settings).key == EngineSettings(**order.settings).key
        assert caption_engine(settings).render == EngineSettings(**order.settings).render
        assert settings.caption_generation.max_output_tokens == {"qwen3": 256, "demo": 20}[work]
        assert order.windows == 20


@pytest.mark.parametrize(("cards", "cores"), [(1, 8), (2, 8), (2, 6), (3, 1)])
def test_each_executor_of_the_job_in_spark_has_one_card_which_all_its_cores_feed(
    tmp_path: Path, cards: int, cores: int
) -> None:
    addresses = tuple(map(str, range(cards)))
    order = SparkOrder({}, "demo", "", str(tmp_path), addresses, cores=cores, heap_mib=1000, windows=1)
    discovery = write_discovery(tmp_path / "gpus.sh", addresses)
    shown = subprocess.run([discovery], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == {"name": "gpu", "addresses": list(addresses)}
    properties = spark_properties(order, discovery, {"PYTHONPATH": "/code"})
    assert spark_master(order) == f"local-cluster[1,{cards * cores},{cards * 1000}]"
    assert properties["spark.worker.resource.gpu.amount"] == str(cards)
    assert properties["spark.executor.resource.gpu.amount"] == "1"
    assert properties["spark.executor.memory"] == "1000m"
    assert properties["spark.executorEnv.PYTHONPATH"] == "/code"
    assert gpu_slots_problem(properties.get) is None
    assert int(1 / task_share(cores)) == cores


def test_windows_of_the_job_in_spark_are_of_clips_with_names_of_their_own(tmp_path: Path) -> None:
    assert copy_clips(WORKLOADS["demo"], tmp_path, tmp_path / "clips", 5) == 6
    paths = sorted((tmp_path / "clips").iterdir())
    assert [path.name for path in paths] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    assert len({path.stat().st_ino for path in paths}) == 1


def test_only_the_time_without_any_engine_counts_as_their_start() -> None:
    loads = [{"time": 190.0, "seconds": 85.0}, {"time": 170.0, "seconds": 60.0}]
    assert start_s(loads) == 170.0 - 105.0
    assert start_s([]) == 0.0


def test_a_job_in_spark_that_did_less_than_it_should_is_told_apart(tmp_path: Path) -> None:
    order = order_of(tmp_path, "qwen3", cards=2)
    engines = [{"address": "1", "output_tokens": 99}, {"address": "0", "output_tokens": 1}]
    good = {
        **{"windows": 400, "rows": 400, "errors": 0, "error": None, "ended_early": 4},
        **{"most_output_tokens": 256, "addresses": ["0", "1"], "engines": engines},
    }
    assert problems(good, order, 400) == []
    for change, told in (
        ({"rows": 401}, "401 rows of 400 windows, not of 400"),
        ({"errors": 1, "error": "no such file"}, "1 windows failed: no such file"),
        ({"addresses": ["0", "0"]}, r"engines ran on ['0', '0'], not on ['0', '1']"),
        ({"engines": [engines[0], {"address": "0", "output_tokens": 0}]}, "of card 0 answered nothing"),
        ({"most_output_tokens": 200}, "up to 200 tokens, not 256"),
        ({"ended_early": 5}, "5 answers ended before"),
    ):
        (problem,) = problems(good | change, order, 400)
        assert told in problem
