"""A background thread yields; the others keep their priority and their threads."""

import os
import sys
import threading

import pytest
import torch

from vlaq_ros.policies.background import NICENESS, stay_in_background


def on_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def settings():
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    return own, torch.get_num_threads()


def background():
    stay_in_background()
    return settings()


@pytest.mark.skipif(sys.platform != 'linux', reason='priorities belong to threads on Linux')
def test_only_the_thread_that_asks_yields():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        here = settings()
        niceness, threads = on_a_thread(background)
        assert (niceness, threads) == (max(NICENESS, here[0]), 1)
        assert settings() == here
        assert on_a_thread(settings) == here
    finally:
        torch.set_num_threads(before)
