"""Pickles of plain data, read without running anything: containers, numbers, text, and what the caller makes of names.

The opcodes are interpreted here one by one. Those that call something call only what the caller lists; instances of
classes become bags of attributes; all others are refused. Work and memory are bounded by the number of opcodes.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 1 << 24  # bytes of a pickle: those of tensors are not in it
MAX_OPCODES = 500_000  # opcodes; torch.save writes about 45 for a tensor
LARGEST = 1 << 64  # of whole numbers
KEY = 8  # items of a tuple that is a key, at most

Called = Mapping[tuple[str, str], Callable[..., object]]


class Refused(ValueError):
    """A pickle that is damaged, or asks for more than plain data."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is only a name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Bag:
    """An instance of a class: its attributes, and if the class is a container its items by number or key."""

    def __init__(self, kind: object):
        self.kind = kind
        self.items: dict[object, object] = {}


def load(data: bytes, called: Called, persistent: Callable[[object], object]) -> object:
    """What a pickle holds. `called`: functions that stand for what it may call, by (module, name); `persistent` makes an
    object of a persistent id. Raises Refused, and what these raise."""
    if len(data) > LONGEST:
        raise Refused(f"{len(data)} bytes of a pickle, expected at most {LONGEST}; is it a file of tensors?")
    return _Reader(called, persistent).read(data)


class _Reader:
    """The stack and the memo of a pickle that is being read. A mark is a stack of its own, as in pickle.py."""

    def __init__(self, called: Called, persistent: Callable[[object], object]):
        self._called, self._persistent = called, persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, object] = {}

    def read(self, data: bytes) -> object:
        """The object that is on the stack when the pickle stops."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
                if count >= MAX_OPCODES:
                    raise Refused(f"more than {MAX_OPCODES} steps in a pickle, enough for some ten thousand tensors")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except Refused:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:  # of bytes that are no pickle
            raise Refused(f"no readable pickle ({type(error).__name__}: {str(error)[:100]})") from error
        raise Refused("a pickle without an end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._push(_number(argument) if isinstance(argument, int) else argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _EMPTY:
            self._push(_EMPTY[name]())
        elif name in _TUPLES:
            first = len(self._stack) - _TUPLES[name]
            if first < 0:
                raise Refused("a tuple of more than there is")
            self._stack[first:] = [tuple(self._stack[first:])]
        elif name in _PUT:
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif name in _GET:
            self._push(self._memo[argument])
        elif (step := getattr(self, f"_{name.lower()}", None)) is not None:
            step(argument)
        elif name not in _NOTHING:
            raise Refused(f"the pickle uses {name}, which plain data do not need")

    def _push(self, found: object) -> None:
        self._stack.append(found)

    # --- marks and containers

    def _mark(self, _: object) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _pop(self, _: object) -> None:
        self._stack.pop()

    def _pop_mark(self, _: object) -> None:
        self._since_mark()

    def _tuple(self, _: object) -> None:
        self._push(tuple(self._since_mark()))

    def _list(self, _: object) -> None:
        self._push(self._since_mark())

    def _dict(self, _: object) -> None:
        items = self._since_mark()
        self._push({})
        self._set(items)

    def _frozenset(self, _: object) -> None:
        self._push(self._since_mark())

    def _append(self, _: object) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: object) -> None:
        self._extend(self._since_mark())

    def _additems(self, _: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Bag):
            target.items.update(enumerate(items, len(target.items)))
        else:
            raise Refused(f"items are added to {_kind(target)}")

    def _setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _setitems(self, _: object) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        found = target.items if isinstance(target, Bag) else target
        if not isinstance(found, dict) or len(items) % 2:
            raise Refused(f"keys and values are added to {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            found[_checked_key(key)] = value

    # --- names and what is made of them

    def _global(self, argument: str) -> None:
        self._push(Name(*argument.split(" ", 1)))

    def _stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("a name that is no text")
        self._push(Name(module, name))

    def _reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        made = self._called.get((function.module, function.name)) if isinstance(function, Name) else None
        if made is None or not isinstance(arguments, tuple):
            raise Refused(f"the pickle calls {str(function)[:100]}, which is not run")
        self._push(made(*arguments))

    def _newobj(self, _: object) -> None:
        _arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Name):
            raise Refused(f"an instance of {_kind(kind)}")
        self._push(Bag(kind))

    def _newobj_ex(self, _: object) -> None:
        self._stack.pop()
        self._newobj(None)

    def _build(self, _: object) -> None:
        """Attributes of a bag; those of other objects are of no use to us, and would change what has been checked."""
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Bag):
            return
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                target.items.update(part)

    def _binpersid(self, _: object) -> None:
        self._push(self._persistent(self._stack.pop()))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME"}


def _number(value: int) -> int:
    if not -LARGEST < value < LARGEST:
        raise Refused("a whole number of more than 64 bits")
    return value


def _checked_key(key: object) -> Any:
    """A key that takes no time to hash: text, a number, or a few of them in a tuple."""
    flat = key if isinstance(key, tuple) else (key,)
    if len(flat) > KEY or not all(isinstance(part, str | bytes | int | float | None) for part in flat):
        raise Refused(f"a key that is {_kind(key)}")
    return key


def _kind(found: object) -> str:
    return f"a {type(found).__name__}"
