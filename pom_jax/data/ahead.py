"""Work done by threads ahead of the one who waits for it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def read_ahead(
    call: Callable[[Task], Result], tasks: Iterable[Task], workers: int, ahead: int
) -> Iterator[Result]:
    """Results in the order of the tasks, of which so many are under way before theirs is asked for.

    Args:
        call: makes a result of a task, in a thread.
        tasks: may be without end; taken one by one by the thread that asks for results.
        workers: threads.
        ahead: tasks under way beyond the one that is asked for.

    Raises:
        What `call` raised, in the place of that result.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    try:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            waiting.append(pool.submit(call, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
