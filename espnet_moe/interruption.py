"""Signals that ask a training to leave: it does so between two steps, and goes on there later."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException

from espnet_moe.checkpoints import Position

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h; slurm.pl queues a job again that ends so
LOADER_GRACE = 20.0  # seconds
MEANING = {
    signal.SIGUSR1: "the time limit is near",
    signal.SIGTERM: "preempted or cancelled",
}


class Interrupted(Exception):  # noqa: N818  # nothing has gone wrong
    """A signal has come, and the step that was under way is done."""


class Requeue(SystemExit):
    """The training is not done, and can go on from its checkpoint."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)


def ignore_in_loaders() -> None:
    """Let a process that loads data go on for a while at a signal; SLURM sends it to a whole job.

    Its parent, which may need the next batch to finish a step, ends it. But not for ever: where the
    parent itself sends SIGTERM, it waits for the end.
    """
    if torch.utils.data.get_worker_info() is not None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: _end_in(LOADER_GRACE))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MEANING)


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back in processes started inside, until they call :func:`ignore_in_loaders`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, MEANING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_in(seconds: float) -> None:
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0.0:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process


@contextmanager
def leaving_together() -> Iterator[None]:
    """Pass signals on to the processes of a training, one a GPU, and leave as they do.

    For the one that has started them, which in ESPnet waits for them and does nothing else. Where
    there are none, as in a training by this process itself, nothing is different.

    Raises:
        Requeue: Where they have left at a signal; their checkpoint is written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        children = multiprocessing.active_children()
        for child in children:
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)
        if not children:  # nobody to wait for yet: as without this
            signal.signal(number, before[signal.Signals(number)])
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, pass_on) for number in MEANING}
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code != REQUEUE:
            raise
        raise Requeue from None
    finally:
        for number in MEANING:
            # A training by this process keeps its own handlers after a signal.
            if signal.getsignal(number) is pass_on:
                signal.signal(number, before[number])


class Signals:
    """Takes note of SIGUSR1 and SIGTERM.

    Args:
        device: Where processes that train together agree on having been asked; None: there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self.caught: signal.Signals | None = None
        self.device = device

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the signals inside, and leave them to whoever had them before after that.

        Not where one was caught: the process is about to end, and often gets the same one again.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in MEANING}
        try:
            yield
        finally:
            for number, handler in before.items() if self.caught is None else ():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = self.caught or signal.Signals(number)

    def asked(self) -> bool:
        """Whether any of the processes was asked to leave; all must call it together."""
        if self.device is None:
            return self.caught is not None
        flag = torch.tensor(int(self.caught is not None), device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def log(self, position: Position) -> None:
        """Say why the training leaves, and where."""
        name = "a signal to another process"
        if self.caught is not None:
            name = f"{self.caught.name} ({MEANING[self.caught]})"
        logging.warning(
            "%s: checkpoint written after iteration %d of epoch %d; the same command goes on there",
            name,
            position.iterations,
            position.epoch,
        )


class Interruptible:
    """The batches of an epoch from a place on; a signal ends them between two optimiser steps.

    Batches before the place are made again and left aside, so that those behind it are what they
    would have been: in a process that loads data, each draws random numbers after the one before.

    Args:
        batches: Of the whole epoch.
        signals: Asked after every step.
        accum_grad: Batches an optimiser step.
        start: Where to go on; None: from the first one.
    """

    def __init__(
        self, batches: Any, signals: Signals, accum_grad: int = 1, start: Position | None = None
    ) -> None:
        self.batches, self.signals = batches, signals
        self.accum_grad, self.start = accum_grad, start
        self.done = 0 if start is None else start.iterations

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        with _held_back():
            batches = iter(self.batches)
        if self.done:
            logging.info("making %d batches again that were trained on before", self.done)
        for _ in range(self.done):
            next(batches, None)
        if self.start is not None:
            self.start.restore_generators()
        for batch in batches:
            yield batch
            self.done += 1
            if self.done % self.accum_grad == 0 and self.signals.asked():
                del batches  # a traceback would keep the loading processes
                raise Interrupted
