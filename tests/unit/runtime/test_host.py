import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer_loop import UserError
from trainer_loop.runtime import host
from trainer_loop.runtime.host import choose_threads, expand_home, expect_many_shapes, prepare_environment, return_pages


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OMP_NUM_THREADS",
        "LOCAL_WORLD_SIZE",
        "ACCELERATE_MIXED_PRECISION",
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
        "DNNL_PRIMITIVE_CACHE_CAPACITY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host, "_count_cores", lambda: 8)


def test_without_a_launcher_torch_or_the_user_chooses_the_threads(monkeypatch):
    assert choose_threads("auto") is None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_threads("auto") is None


def test_the_1_of_a_launcher_becomes_a_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert choose_threads("auto") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert choose_threads("auto") == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert choose_threads("auto") == 1


def test_another_number_given_to_a_launcher_stays(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads("auto") is None


def test_the_config_has_the_last_word(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(5) == 5


def test_threads_that_wait_spin_for_a_while_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is taken away again
    del os.environ["GOMP_SPINCOUNT"]
    prepare_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    prepare_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    prepare_environment()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_code_of_few_shapes_is_kept_unless_the_user_says_otherwise(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "")  # so that it is taken away again
    del os.environ[name]
    expect_many_shapes()
    assert os.environ[name] == "128"
    monkeypatch.setenv(name, "7")
    expect_many_shapes()
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    monkeypatch.setenv("DNNL_PRIMITIVE_CACHE_CAPACITY", "7")  # its older name
    expect_many_shapes()
    assert name not in os.environ


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept():
    """A large block that was freed comes back without the kernel handing out new pages for it."""
    program = """
import ctypes, resource, sys
from trainer_loop.runtime.host import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use(size=16 * 2**20):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        way: int(subprocess.run([sys.executable, "-c", program, way], capture_output=True, check=True).stdout)
        for way in ("keep", "as it is")
    }
    assert faults["keep"] <= 10
    if faults["as it is"] == 0:
        pytest.skip("this kernel does not count page faults")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only its kernel takes pages back at once")
def test_pages_that_are_returned_take_no_memory_and_what_lies_beside_them_stays():
    numbers = torch.ones(8 * 2**20)
    before = read_own_memory()
    return_pages(numbers[1:-1].data_ptr(), numbers[1:-1].nbytes)
    assert before - read_own_memory() > 30 * 2**20
    assert numbers[0] == numbers[-1] == 1
    assert numbers.sum() <= 2 * mmap.PAGESIZE / numbers.itemsize
    return_pages(numbers[1:].data_ptr(), 8)  # less than a page
    assert numbers[-1] == 1


def read_own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


@pytest.mark.parametrize("path", ["~nobody_of_this_name/a", "~nobody_of_this_name"])
def test_a_home_directory_that_is_not_there_is_told_with_the_key_it_is_from(path):
    with pytest.raises(
        UserError, match=f"^data.cache_dir: {path}: there is no such home directory; write the path out"
    ):
        expand_home(path, place="data.cache_dir")


def test_paths_without_a_home_stay_as_they_are_and_others_are_found(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert [str(expand_home(path)) for path in ("a/~b", "~", "~/c")] == ["a/~b", "/somewhere", "/somewhere/c"]
