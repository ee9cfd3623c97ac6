"""`@frozen`: what `dataclass(frozen=True, slots=True)` gives, without the imports.

`dataclasses` pulls in `inspect`, `re` and more: 6 ms at every launch. A type checker sees the real thing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, dataclass_transform

    @dataclass_transform(frozen_default=True)
    def frozen[T](cls: type[T]) -> type[T]: ...
else:

    def frozen(cls):
        """Give `cls` an `__init__` from its annotations, equality, a repr, and no way to set an attribute.

        Fields are the class's own annotations in order, after those of its bases; a class attribute of the same name is
        the default. ClassVar annotations are no fields.
        """
        fields = ()
        for base in cls.__mro__[1:]:
            fields = base.__dict__.get("__fields__", ())
            if fields:
                break
        own = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - inspect is what this module avoids
        fields += tuple([name for name in own if name not in fields and own[name][:8] != "ClassVar"])
        cls.__fields__ = fields
        # The same functions for every class: making them anew for each would be half the cost.
        cls.__init__ = _init
        cls.__setattr__ = cls.__delattr__ = _refuse
        cls.__eq__ = _equal
        cls.__hash__ = _hash
        cls.__repr__ = _repr
        return cls


_store = object.__setattr__


def _init(self: object, *args: object, **kwargs: object) -> None:
    cls = type(self)
    fields: tuple[str, ...] = cls.__dict__["__fields__"]
    if len(args) > len(fields):
        raise TypeError(f"{cls.__name__} takes {len(fields)} fields, got {len(args)}")
    for name, value in zip(fields, args):  # noqa: B905 - the rest comes below
        _store(self, name, value)
    for name in fields[len(args) :]:
        if name in kwargs:
            _store(self, name, kwargs.pop(name))
        elif hasattr(cls, name):
            _store(self, name, getattr(cls, name))
        else:
            raise TypeError(f"{cls.__name__} lacks {name}")
    if kwargs:
        raise TypeError(f"{cls.__name__} has no field {', '.join(kwargs)}")


def fields_of(value: object) -> tuple[str, ...]:
    """The names of the fields of a frozen object, or of a frozen class, in order."""
    cls = value if isinstance(value, type) else type(value)
    return cls.__dict__["__fields__"]  # type: ignore[no-any-return]


def values_of(value: object) -> tuple[Any, ...]:
    """The values of the fields of a frozen object, in order."""
    return tuple([getattr(value, name) for name in fields_of(value)])


def _refuse(self: object, name: str, value: object = None) -> None:  # noqa: ARG001 - as object has it
    raise AttributeError(f"{type(self).__name__} is frozen")


def _equal(self: object, other: object) -> bool:
    return type(other) is type(self) and values_of(self) == values_of(other)


def _hash(self: object) -> int:
    return hash((type(self), values_of(self)))


def _repr(self: object) -> str:
    return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields_of(self))})"
