"""Virtual devices of the CPU, in processes of their own: JAX starts once."""

import os
import subprocess
import sys

import pytest

from ringworld.mesh import default_cpu_devices

PROGRAM = """
from ringworld.mesh import MeshShape, build_mesh, named_sharding, use_cpu_devices

use_cpu_devices(2)
import jax.numpy as jnp
import os

mesh = build_mesh(MeshShape(data=2))
total = jnp.ones(2, device=named_sharding(mesh, ("batch",))).sum()
print(int(total), os.environ["XLA_FLAGS"])
"""
TIMEOUT = "--xla_cpu_collective_call_terminate_timeout_seconds="


def said(**environment: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    variables |= {"JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


def test_devices_that_share_cores_wait_for_each_other_for_hours():
    number, flags = said().split()
    assert number == "2"
    assert int(flags.removeprefix(TIMEOUT)) >= 3600


def test_what_the_environment_says_of_it_stays():
    assert said(XLA_FLAGS=f"{TIMEOUT}77") == f"2 {TIMEOUT}77"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_a_process_has_a_device_for_each_of_two_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch):
    for cores, devices in (({1}, 1), ({0, 3}, 2), (range(16), 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(cores))
        assert default_cpu_devices() == devices
