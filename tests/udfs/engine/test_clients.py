"""Clients of one engine: how they share it, and what becomes of their requests when they go."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels, vision_settings
from tests.udfs.engine.requests_maker import TIMEOUT_S, answers, caption_request
from udfs.engine.client import EngineClient
from udfs.engine.requests import Generation
from udfs.engine.slot import Slot


def run_client(program: str, models: DemoModels, slot: Slot) -> "subprocess.CompletedProcess[str]":
    """Runs a program that takes the engine's settings and its slot."""
    arguments = [vision_settings(models).model_dump_json(), str(slot.owner_pid), str(slot.owner_start)]
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_two_clients_share_one_engine_and_its_room(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot
) -> None:
    with EngineClient(vision_settings(demo_models), engine_slot) as other:
        mine = [vision_engine.submit(caption_request(f"m{k}", k), 4) for k in range(12)]
        theirs = [other.submit(caption_request(f"m{k}", k), 4) for k in range(12)]
        assert [r.text for r in answers(mine)] == [r.text for r in answers(theirs)]
        status = other.status()
        assert status["pid"] == vision_engine.status()["pid"]
        assert status["clients"] == 2
        assert status["loads"] == 1


DYING_CLIENT = """
import sys, os
from conf.engine import EngineSettings
from udfs.engine.client import EngineClient
from udfs.engine.slot import Slot
from udfs.engine.requests import Generation
from tests.udfs.engine.requests_maker import caption_request
settings = EngineSettings.model_validate_json(sys.argv[1])
client = EngineClient(settings, Slot(int(sys.argv[2]), int(sys.argv[3])))
long = Generation(temperature=1.0, top_p=1.0, repetition_penalty=1.5, max_output_tokens=20000)
for k in range(16):
    client.submit(caption_request(f"d{k}", k, generation=long), 16)
while client.status()["running"] < 16:
    pass
print("torch" in sys.modules, flush=True)
os._exit(1)
"""


def test_requests_of_a_client_that_dies_are_aborted(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot
) -> None:
    done = run_client(DYING_CLIENT, demo_models, engine_slot)
    assert done.stdout.strip() == "False", done.stderr
    deadline = time.monotonic() + TIMEOUT_S
    while vision_engine.status()["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.05)
    status = vision_engine.status()
    assert (status["in_flight"], status["running"], status["clients"]) == (0, 0, 1)
    assert vision_engine.submit(caption_request("after", 1)).result(TIMEOUT_S).error is None
    # The host answers first and closes then.
    deadline = time.monotonic() + TIMEOUT_S
    while (left := open_frames(status["pid"])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_requests_that_the_engine_refuses_leave_no_frames_behind(vision_engine: EngineClient) -> None:
    too_long = "word " * 40_000
    for k in range(3):
        reply = vision_engine.submit(caption_request(f"refused{k}", k, prompt=too_long)).result(TIMEOUT_S)
        assert str(MAX_MODEL_LEN) in (reply.error or "")
    pid = vision_engine.status()["pid"]
    deadline = time.monotonic() + 5
    while (left := open_frames(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def open_frames(pid: int) -> list[str]:
    """Frames that a process still holds."""
    held = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held.append(str(fd.readlink()))
    return [name for name in held if "captionlake-frames" in name]


FORKING_CLIENT = """
import os, sys
from conf.engine import EngineSettings
from udfs.engine.client import EngineClient
from udfs.engine.slot import Slot
from tests.udfs.engine.requests_maker import caption_request
settings = EngineSettings.model_validate_json(sys.argv[1])
client = EngineClient(settings, Slot(int(sys.argv[2]), int(sys.argv[3])))
before = client.submit(caption_request("f", 1)).result(60).text
child = os.fork()
text = client.submit(caption_request("f", 1)).result(60).text
client.close()
if child == 0:
    os._exit(0 if text == before else 3)
print(text == before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_client_works_on_both_sides_of_a_fork(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot
) -> None:
    done = run_client(FORKING_CLIENT, demo_models, engine_slot)
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_a_client_may_not_have_more_in_flight_than_its_share(vision_engine: EngineClient) -> None:
    share = vision_engine.settings.max_in_flight
    futures = []
    for k in range(share + 40):
        futures.append(
            vision_engine.submit(caption_request(f"s{k}", k, generation=Generation(0.0, 1.0, 1.0, 2)))
        )
        assert sum(not future.done() for future in futures) <= share
    assert all(reply.error is None for reply in answers(futures))
    kept = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [fd for fd in kept if "captionlake-frames" in str(fd.readlink())]


def test_a_closed_client_fails_its_futures_and_frees_the_engine(
    vision_engine: EngineClient, demo_models: DemoModels, engine_slot: Slot
) -> None:
    with EngineClient(vision_settings(demo_models), engine_slot) as client:
        slow = Generation(temperature=1.0, top_p=1.0, repetition_penalty=1.5, max_output_tokens=20_000)
        future = client.submit(caption_request("never", 1, generation=slow))
    assert "closed" in str(future.exception(1))
    assert "closed" in str(client.submit(caption_request("late", 1)).exception(1))
