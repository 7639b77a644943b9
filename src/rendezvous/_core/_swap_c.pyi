from collections.abc import Callable
from typing import Any, TypeVar, final

__all__ = ["Backoff", "compare_and_swap"]

_T = TypeVar("_T")

@final
class Backoff:
    def __init__(self, base: float = 0.005, cap: float = 1.0, seed: int | None = None) -> None: ...
    def next(self) -> float: ...
    def reset(self) -> None: ...

def compare_and_swap(
    read: Callable[[], tuple[_T, Any] | None],
    write: Callable[[_T, Any], tuple[_T, Any, bool] | None],
    change: Callable[[_T | None], _T | None],
    backoff: Backoff,
    deadline: float | None = None,
    clock: Callable[[], float] = ...,
    sleep: Callable[[float], object] = ...,
) -> tuple[_T | None, Any, bool, int]: ...
