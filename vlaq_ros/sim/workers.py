"""
Episodes on several processes: each worker owns a simulator and the policies it was asked for.

A job is one start of the benchmark with all configurations still to run from it, so the
observations of the reference run stay in the worker that replays them. Workers are spawned, not
forked: OpenGL and thread pools do not survive a fork. They ignore Ctrl-C, end with their parent,
and are ended by `close`.
"""

import multiprocessing
import os
import signal
import threading
import traceback
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from vlaq_ros.errors import PolicyError, SimulatorError, UnsafeActionError, VlaqError
from vlaq_ros.kinematics.drift import open_loop_drift
from vlaq_ros.policies.base import MemoryReport, Policy
from vlaq_ros.sim.dynamic import DynamicPolicy
from vlaq_ros.sim.precision_run import PrecisionRun, static_run
from vlaq_ros.sim.results import Config, Record
from vlaq_ros.sim.rollout import Episode, EpisodeResult, run_episode
from vlaq_ros.sim.source import PolicySource, like_of

JOIN_S = 5.0


@dataclass(frozen=True)
class Job:
    """
    One start of the benchmark.

    Attributes:
        episode: Where it starts.
        configs: What is still to run from there.
        open_loop: Whether to replay the observations of the reference through the others.
        finished: What configurations that are finished ran at, for those that repeat it.
    """

    episode: Episode
    configs: tuple[Config, ...]
    open_loop: bool
    finished: Mapping[Config, PrecisionRun] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A worker has loaded a policy."""

    config: Config
    memory: MemoryReport


@dataclass(frozen=True)
class Finished:
    """A worker has finished an episode."""

    config: Config
    record: Record


@dataclass
class _Worker:
    process: Any
    connection: Connection
    job: Job | None = None
    tasks: set[str] = field(default_factory=set)


class WorkerPool:
    """Runs jobs on `processes` workers; a context manager that leaves no process behind."""

    def __init__(self, processes: int, source: PolicySource) -> None:
        context = multiprocessing.get_context('spawn')
        self._workers: list[_Worker] = []
        with _interrupts_held():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, source), daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))

    def __enter__(self) -> 'WorkerPool':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, jobs: Iterable[Job]) -> Iterator[Loaded | Finished]:
        """
        Yield what the workers report until every job is done.

        Raises:
            VlaqError: A worker met an error that concerns the user.
            SimulatorError: A worker died.
            RuntimeError: A worker met any other error; the message holds its traceback.
        """
        waiting: dict[str, list[Job]] = {}
        for job in jobs:
            waiting.setdefault(job.episode.task, []).append(job)
        for worker in self._workers:
            self._dispatch(worker, waiting)
        while busy := [worker for worker in self._workers if worker.job is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in (worker for worker in busy if worker.connection in ready):
                message = self._receive(worker)
                if message is None:
                    self._dispatch(worker, waiting)
                else:
                    yield message

    def close(self) -> None:
        """End every worker, whatever it is doing."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(JOIN_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _dispatch(self, worker: _Worker, waiting: dict[str, list[Job]]) -> None:
        """Give the next job, of a task whose scene the worker has built if there is one."""
        worker.job = None
        if not waiting:
            return
        built = Counter(task for other in self._workers for task in other.tasks)
        task = min(waiting, key=lambda t: (t not in worker.tasks, built[t], -len(waiting[t])))
        worker.job = waiting[task].pop(0)
        worker.tasks.add(task)
        if not waiting[task]:
            del waiting[task]
        worker.connection.send(worker.job)

    def _receive(self, worker: _Worker) -> Loaded | Finished | None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionError) as error:
            worker.process.join(JOIN_S)
            raise SimulatorError(
                f'a worker died with exit status {worker.process.exitcode} while running '
                f'{worker.job.episode}; if the system ended it for memory, use fewer --processes'
            ) from error
        if isinstance(message, VlaqError):
            raise message
        if isinstance(message, str):
            raise RuntimeError(f'a worker failed while running {worker.job.episode}:\n{message}')
        return message


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back: processes started meanwhile never see it, this one does afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, source: PolicySource) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runner = None
    try:
        while True:
            job = connection.recv()
            runner = runner or EpisodeRunner(source)
            for message in runner.run(job):
                connection.send(message)
            connection.send(None)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    except VlaqError as error:
        connection.send(error)
    except Exception:
        connection.send(traceback.format_exc())


def _end_with_parent() -> None:
    """End this process when its parent is gone, also in the middle of an episode."""
    multiprocessing.parent_process().join()
    os._exit(1)


class EpisodeRunner:
    """One simulator and the policies that its jobs asked for, loaded on first use."""

    def __init__(self, source: PolicySource) -> None:
        from vlaq_ros.sim.robot import SimRobot

        self._robot = SimRobot()
        self._source = source
        self._policies: dict[Config, Policy] = {}
        self._warm: set[Config] = set()

    def run(self, job: Job) -> Iterator[Loaded | Finished]:
        """Run every configuration of a job, the references first, what repeats others last."""
        references: dict[str, EpisodeResult] = {}
        levels = dict(job.finished)
        for config in sorted(job.configs, key=lambda c: (not c.is_reference, bool(like_of(c)))):
            for needed in (config.reference, config) if job.open_loop else (config,):
                if needed not in self._policies:
                    self._policies[needed] = self._source.load(needed)
                    yield Loaded(needed, self._policies[needed].memory())
            if config.is_reference:
                references[config.head] = self._roll_out(config, job, keep=job.open_loop)
                yield Finished(config, self._record(config, references[config.head]))
                continue
            if job.open_loop and config.head not in references:
                # A resumed run has the result but not the images; the run is repeatable.
                references[config.head] = self._roll_out(config.reference, job, keep=True)
            like = like_of(config)
            if like and like not in levels:
                yield Finished(config, self._refused(config, job, f'{like.name} was stopped'))
                continue
            if like:
                seed = zlib.crc32(repr(job.episode).encode())
                self._policies[config].chooser.prepare(levels[like], seed)
            record = self._compare(config, job, references.get(config.head))
            if record.precision is not None:
                levels[config] = record.precision
            yield Finished(config, record)

    def _roll_out(self, config: Config, job: Job, keep: bool = False) -> EpisodeResult:
        policy = self._policies[config]
        return run_episode(
            self._robot,
            policy,
            job.episode,
            execution_horizon=self._source.execution_horizon,
            keep_observations=keep,
            on_action=policy.executed if isinstance(policy, DynamicPolicy) else None,
        )

    def _compare(self, config: Config, job: Job, reference: EpisodeResult | None) -> Record:
        try:
            result = self._roll_out(config, job)
            precision = self._precision(config, result)
            open_loop = self._replay(config, reference) if job.open_loop else None
        except (PolicyError, UnsafeActionError) as error:
            # On a robot this stops the arm, so here it is a failed episode and not a crash.
            return self._refused(config, job, str(error))
        return self._record(config, result, open_loop, precision=precision)

    def _refused(self, config: Config, job: Job, why: str) -> Record:
        nothing = np.empty((0, 3))
        result = EpisodeResult(job.episode, False, 0, nothing, nothing, chunks=())
        return self._record(config, result, stopped=why)

    def _precision(self, config: Config, result: EpisodeResult) -> PrecisionRun | None:
        policy = self._policies[config]
        if isinstance(policy, DynamicPolicy):
            return policy.run_so_far()
        return static_run(policy, len(result.chunks))

    def _replay(self, config: Config, reference: EpisodeResult) -> dict[str, float]:
        """
        Return the drift of the actions this policy answers to what the reference saw.

        Where the motion decides the precision, that of the reference does.
        """
        policy = self._policies[config]
        policy.reset()
        horizon = self._source.execution_horizon or policy.spec.execution_horizon
        rows = []
        for number, observation in enumerate(reference.observations):
            rows.append(policy.infer(observation).actions[:horizon])
            if isinstance(policy, DynamicPolicy):
                for action in reference.actions[number * horizon : (number + 1) * horizon]:
                    policy.executed(action)
        actions = np.concatenate(rows)[: len(reference.actions)]
        drift = open_loop_drift(actions, reference.actions, policy.spec.action)
        values = asdict(drift)
        return {name: float(value) for name, value in values.items() if np.isfinite(value)}

    def _record(
        self,
        config: Config,
        result: EpisodeResult,
        open_loop: dict[str, float] | None = None,
        stopped: str = '',
        precision: PrecisionRun | None = None,
    ) -> Record:
        inference_s = tuple(chunk.inference_s for chunk in result.chunks)
        if inference_s and config not in self._warm:
            self._warm.add(config)
            inference_s = inference_s[1:]
        episode = result.episode
        return Record(
            episode.task,
            episode.seed,
            episode.index,
            episode.instruction,
            result.success,
            result.steps,
            result.positions,
            inference_s,
            open_loop,
            stopped,
            precision,
        )
