"""Actors by the types of their classes, run by Ray."""

from __future__ import annotations

import subprocess
import sys

import ray

from mergebench_ray.ray_actors import actors_of


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


def test_what_calls_an_actor_imports_neither_its_class_nor_torch() -> None:
    script = "import sys, mergebench_ray.search.trainable; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "False"
