"""Processes that are forked, for what is run in a process of its own."""

import os
import traceback

import torch


def fork(function, *args):
    """A process that calls a function; its exit status is 1 if that raises."""
    pid = os.fork()
    if pid == 0:
        status = 0
        os.setsid()  # so that its workers can be ended with it
        torch.set_num_threads(1)  # the other threads did not come along, and would be waited for
        try:
            function(*args)
        except BaseException:
            traceback.print_exc()
            status = 1
        os._exit(status)
    return pid


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
