"""`@frozen`: what `dataclass(frozen=True, slots=True)` gives, without the imports.

`dataclasses` pulls in `inspect`, `re` and more: 6 ms at every launch. A type checker sees the real thing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass
    from typing import Any, TypeVar, dataclass_transform

    _T = TypeVar("_T")

    @dataclass_transform(frozen_default=True)
    def frozen(cls: type[_T]) -> type[_T]: ...
else:

    def frozen(cls):
        """Give `cls` an `__init__` from its annotations, equality, a repr, and no way to set an attribute.

        Fields are the class's own annotations in order, after those of its bases; a class attribute of the same name is
        the default.
        """
        own = tuple(name for name, kind in cls.__dict__.get("__annotations__", {}).items() if not kind.startswith("ClassVar"))
        inherited = ()
        for base in cls.__mro__[1:]:
            inherited = getattr(base, "__fields__", ())
            if inherited:
                break
        fields = inherited + tuple(name for name in own if name not in inherited)
        defaults = {name: getattr(cls, name) for name in fields if hasattr(cls, name)}
        cls.__fields__ = fields
        count = len(fields)
        store = object.__setattr__

        def __init__(self, *args, **kwargs):
            if len(args) > count:
                raise TypeError(f"{cls.__name__} takes {count} fields, got {len(args)}")
            for name, value in zip(fields, args):
                store(self, name, value)
            for name in fields[len(args) :]:
                if name in kwargs:
                    store(self, name, kwargs.pop(name))
                elif name in defaults:
                    store(self, name, defaults[name])
                else:
                    raise TypeError(f"{cls.__name__} lacks {name}")
            if kwargs:
                raise TypeError(f"{cls.__name__} has no field {', '.join(kwargs)}")

        def refuse(self, name, value=None):
            raise AttributeError(f"{cls.__name__} is frozen")

        def values(self):
            return tuple(getattr(self, name) for name in fields)

        cls.__init__ = __init__
        cls.__setattr__ = refuse
        cls.__delattr__ = refuse
        cls.__eq__ = lambda self, other: type(other) is cls and values(self) == values(other)
        cls.__hash__ = lambda self: hash(values(self))
        cls.__repr__ = lambda self: (
            f"{cls.__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in fields)})"
        )
        return cls
