"""Jobs in processes of their own, a few at a time: a job that is killed costs its own result and nothing else."""

import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from istd.threads import use_threads

Key = TypeVar("Key")


class WorkerDied(RuntimeError):
    """A process ended before it gave its result; the message says by which signal or exit code."""


def run_jobs(
    jobs: Mapping[Key, tuple[Any, ...]], work: Callable[..., Any], at_once: int, threads: int
) -> Generator[tuple[Key, Callable[[], Any]]]:
    """Call `work(*arguments)` for every job, each in a fresh process, and give results as they come.

    Processes end with this one, however it ends. If the caller stops early, those that run are terminated.

    Args:
        jobs: arguments by key; both must be picklable, and so must be `work`.
        work: a function of a module.
        at_once: processes at a time.
        threads: CPU threads of each.

    Yields:
        A job's key and a function that returns its result, or raises what the job raised or `WorkerDied`.
    """
    context: Any = get_context("spawn")  # a child of a fork would share locks and threads
    waiting = list(jobs.items())
    running: dict[Any, tuple[Key, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                key, arguments = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(sender, work, arguments, threads), daemon=True)
                process.start()
                sender.close()  # the child holds the only other end: its death is the end of the stream
                running[receiver] = key, process
            for receiver in connection.wait(list(running)):
                key, process = running.pop(receiver)
                yield key, _outcome(receiver, process)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _outcome(receiver: Any, process: BaseProcess) -> Callable[[], Any]:
    try:
        good, content = pickle.loads(receiver.recv_bytes())
    except (EOFError, OSError):
        process.join()
        good, content = False, WorkerDied(_cause(process.exitcode))
    finally:
        receiver.close()
    process.join()

    def result() -> Any:
        if not good:
            raise content
        return content

    return result


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; a machine short of memory does that" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}. The same command goes on from its last finished epoch."
    return f"its process ended with exit code {code} before it gave a result."


def _serve(sender: Any, work: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> None:
    """The whole life of a worker process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    use_threads(threads)
    try:
        reply = True, work(*arguments)
    except Exception as error:
        reply = False, error
    try:
        content = pickle.dumps(reply)
        pickle.loads(content)
    except Exception:  # an error with arguments of its own may not survive the way
        content = pickle.dumps((False, RuntimeError(f"{type(reply[1]).__name__}: {reply[1]}")))
    sender.send_bytes(content)
    sender.close()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
