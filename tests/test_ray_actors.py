"""Actors by the types of their classes, run by Ray."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator

import ray

from mergebench_ray.ray_actors import Actor, actors_of, call_is_cancelled


def test_an_actor_takes_what_its_class_takes_and_its_methods_travel_alone(ray_cluster: None) -> None:
    # Made here, it travels by value: Ray's workers cannot import this file.
    class Counter:
        def __init__(self, start: int, step: int = 1) -> None:
            self.value, self.step = start, step

        def add(self, times: int, *, twice: bool = False) -> int:
            self.value += self.step * times * (1 + twice)
            return self.value

    counter = actors_of(Counter, num_cpus=0)(10, step=2)
    try:
        assert ray.get(counter.call(Counter.add, 1)) == 12
        assert ray.get(counter.method(Counter.add)(1, twice=True)) == 16
        elsewhere = ray.remote(num_cpus=0)(lambda method: ray.get(method(2)))
        assert ray.get(elsewhere.remote(counter.method(Counter.add))) == 20
    finally:
        counter.kill()


def test_what_a_generator_yields_comes_at_once_and_a_stop_reaches_it_while_it_works(ray_cluster: None) -> None:
    # Made here, it travels by value: Ray's workers cannot import this file.
    class Worker:
        def __init__(self) -> None:
            self.ended_at = -1

        def work(self, steps: int, rest: int) -> Generator[tuple[int, bool, float], None, None]:
            for step in range(steps):
                yield step, threading.current_thread() is threading.main_thread(), time.time()
            self.ended_at = 0
            while self.ended_at < rest and not call_is_cancelled():
                time.sleep(0.01)
                self.ended_at += 1

        def ended(self) -> int:
            return self.ended_at

    worker = actors_of(Worker, num_cpus=0)()
    try:
        yielded = [(*one, time.time()) for one in worker.stream(Worker.work, 20, 1)]
        assert [step for step, *_ in yielded] == list(range(20))
        assert all(main for _, main, *_ in yielded)  # only this thread gets signals
        assert statistics.median(now - then for *_, then, now in yielded) < 0.02

        stream = worker.stream(Worker.work, 2, 100_000)
        waiting = threading.Thread(target=lambda: list(stream))
        waiting.start()
        time.sleep(0.1)
        stream.cancel()
        assert 0 <= ray.get(worker.call(Worker.ended), timeout=30) < 100_000
        waiting.join(timeout=30)
        assert not waiting.is_alive()
        assert len(list(worker.stream(Worker.work, 3, 1))) == 3
    finally:
        worker.kill()


def test_an_actor_outlives_who_read_its_stream(ray_cluster: None) -> None:
    class Worker:
        def work(self) -> Generator[int, None, None]:
            yield from range(200)

        def idle(self) -> bool:
            return True

    worker = actors_of(Worker, num_cpus=0)()

    class Reader:
        def read(self, actor: Actor[Worker]) -> int:
            self.stream = actor.stream(Worker.work)
            return next(self.stream)

        def die(self) -> None:
            os._exit(1)

    reader = actors_of(Reader, num_cpus=0)()
    try:
        assert ray.get(reader.call(Reader.read, worker)) == 0
        reader.call(Reader.die)
        assert ray.get(worker.call(Worker.idle), timeout=60)
    finally:
        worker.kill()


def test_what_calls_an_actor_imports_neither_its_class_nor_torch() -> None:
    script = "import sys, mergebench_ray.search.trainable; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "False"


def test_an_actor_finds_the_environment_that_it_is_started_with_also_where_all_have_it(ray_cluster: None) -> None:
    class Environment:
        def of(self, name: str) -> str | None:
            return os.environ.get(name)

    asked = ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"})
    actors = [actors_of(Environment, num_cpus=0, runtime_env={"env_vars": one})() for one in asked]
    try:
        found = ray.get([one.call(Environment.of, "OMP_WAIT_POLICY") for one in actors])
        assert found == ["PASSIVE", "ACTIVE"]
    finally:
        for one in actors:
            one.kill()
