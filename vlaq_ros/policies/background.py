"""Inference that stays out of the way of another one in the same process."""

import os
import sys
import threading

NICENESS = 10


def stay_in_background() -> None:
    """
    Let the calling thread, and none of the others, yield: low priority, one thread of the library.

    On Linux priorities belong to threads; elsewhere the priority stays as it is.
    """
    import torch  # here, so that nodes without a policy need not load it

    if sys.platform == 'linux':
        own = os.PRIO_PROCESS, threading.get_native_id()
        os.setpriority(*own, max(NICENESS, os.getpriority(*own)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # The number is the calling thread's own, but also what threads begin with that come later:
    # there another one puts it back.
    restore = threading.Thread(target=torch.set_num_threads, args=(threads,))
    restore.start()
    restore.join()
