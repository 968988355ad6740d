"""Threads, processes and memory around the C++ kernels: same bits, no deadlock, no growth."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from vlaq_ros.kernels import native_library

needs_library = pytest.mark.skipif(
    native_library.problem() != '', reason=native_library.problem() or 'the library is there'
)
pytestmark = needs_library
MIXED = [16, 8, 8, 4, 4, 2, 0, 8]


@pytest.fixture(autouse=True)
def same_number_of_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def python(code):
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('tokens', [1, 3, 50, 200])
@pytest.mark.parametrize('activation_bits', [8, 16])
def test_the_number_of_threads_does_not_change_a_bit(
    integer_kernel, make_weight, multiply, generator, tokens, activation_bits
):
    weight = make_weight(MIXED * 90, 320, 64)
    x = torch.randn(tokens, 320, generator=generator)
    results = []
    for threads in (1, 2, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(multiply(integer_kernel, x, weight, 8, activation_bits))
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_several_python_threads_at_once_get_what_each_gets_alone(
    integer_kernel, make_weight, generator
):
    """Four layers with inputs of different sizes, called fifty times from a thread each."""
    torch.set_num_threads(2)
    jobs = []
    for tokens, precision in ((1, [8, 8]), (7, [4, 8]), (64, [8, 16]), (130, [4, 4])):
        weight = make_weight(MIXED * 40, 16 * tokens + 33, 64)
        x = torch.randn(tokens, weight.layout.shape[1], generator=generator)
        precision = torch.tensor(precision, dtype=torch.int32)
        jobs.append((x, integer_kernel.pack(weight), weight.layout, precision, None))
    alone = [integer_kernel.run(*job) for job in jobs]
    wrong, start = [], threading.Barrier(len(jobs))

    def repeat(job, expected):
        start.wait()
        for _ in range(50):
            if not torch.equal(integer_kernel.run(*job), expected):
                wrong.append(job)

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(jobs, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


def test_the_interpreter_lock_is_free_while_a_kernel_runs(integer_kernel, make_weight, generator):
    """This thread counts while another one multiplies; with the lock held it could not."""
    torch.set_num_threads(1)
    weight = make_weight([8] * 1024, 1024, 64)
    packed, precision = integer_kernel.pack(weight), torch.tensor([8, 8], dtype=torch.int32)
    x = torch.randn(2048, 1024, generator=generator)
    count, counted = 0, []

    def multiply():
        before = count
        integer_kernel.run(x, packed, weight.layout, precision, None)
        counted.append(count - before)

    thread = threading.Thread(target=multiply)
    thread.start()
    while thread.is_alive():
        count += 1
        time.sleep(0)
    thread.join()
    assert counted[0] > 10


SET_UP = """
import torch
from vlaq_ros.kernels import cpu, native_library
from vlaq_ros.quant.mixed import MixedWeight
torch.manual_seed(0)
torch.set_num_threads(2)
weight = MixedWeight.from_float(torch.randn(720, 320), [16, 8, 8, 4, 4, 2, 0, 8] * 90, 64)
packed, precision = cpu.pack(weight), torch.tensor([8, 8], dtype=torch.int32)
def run(x):
    return cpu.run(x, packed, weight.layout, precision, None)
"""


def test_a_forked_process_computes_the_same():
    """
    Worker threads do not survive a fork; the child must notice, and the parent must go on.

    The child compares with NumPy: the OpenMP threads of torch itself hang after a fork.
    """
    code = """
import os, signal
x = torch.randn(64, 320)
expected = run(x).numpy()
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = all((run(x).numpy() == expected).all() for _ in range(20))
        os._exit(0 if same else 1)
    assert all((run(x).numpy() == expected).all() for _ in range(20))
    assert os.waitpid(child, 0)[1] == 0
print('same')
"""
    assert python(SET_UP + code) == 'same\n'


def test_a_process_ends_while_workers_wait():
    assert python(SET_UP + "run(torch.randn(64, 320)); print('done')") == 'done\n'


def test_a_thread_that_ends_takes_its_memory_along():
    """A ROS node may call from short-lived threads. What 300 of them left would be over 100 MB."""
    code = """
import threading, psutil
inputs = [torch.randn(tokens, 320) for tokens in (1, 64, 300)]
def work():
    for x in inputs:
        run(x)
def run_threads(count):
    for _ in range(count):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
run_threads(100)
before = psutil.Process().memory_info().rss
run_threads(300)
print(psutil.Process().memory_info().rss - before)
"""
    assert int(python(SET_UP + code)) < 16 << 20  # a few huge pages come and go


def test_memory_does_not_grow_from_call_to_call():
    """Resident memory, since no Python tool sees what C++ allocates."""
    code = """
import psutil
inputs = [torch.randn(tokens, 320) for tokens in (1, 3, 64, 300)]
inputs += [x.bfloat16() for x in inputs]
def call(times):
    for _ in range(times):
        for x in inputs:
            for cap, activation_bits in ((8, 8), (4, 16)):
                precision[0], precision[1] = cap, activation_bits
                run(x)
call(30)
before = psutil.Process().memory_info().rss
call(300)
print(psutil.Process().memory_info().rss - before)
"""
    assert int(python(SET_UP + code)) < 1 << 20


def test_packing_and_dropping_layers_does_not_grow():
    code = """
import psutil
def repack(times):
    for _ in range(times):
        cpu.unpack(cpu.pack(weight), weight.layout)
repack(20)
before = psutil.Process().memory_info().rss
repack(200)
print(psutil.Process().memory_info().rss - before)
"""
    assert int(python(SET_UP + code)) < 1 << 20
