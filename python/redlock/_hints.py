"""Annotations that can be evaluated (`typing.get_type_hints`, containers that inject dependencies), free until then.

What only type checkers need is imported under ``if TYPE_CHECKING``, and so is not there when annotations are evaluated.
To evaluate annotations is to read them first. That is the moment at which those imports are made up for.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias, TypeGuard

    _Annotations: TypeAlias = dict[str, Any]
else:
    _Annotations = dict


class LateAnnotations(_Annotations):
    """Annotations that, when they are read, have the names they use put into their module.

    Args:
        annotations: as they are: text.
        scope: of a class, the module it stands in: its ``__module__`` may be the one it is imported from.
    """

    def __init__(self, annotations: Any, scope: str | None = None) -> None:
        super().__init__(annotations)
        self._scope = scope

    def _resolve(self) -> None:
        resolve_all()
        if self._scope:
            import typing  # noqa: PLC0415 - what this is about

            scope, self._scope = self._scope, None
            for name, text in super().items():
                if isinstance(text, str):
                    super().__setitem__(name, typing.ForwardRef(text, is_argument=False, module=scope, is_class=True))

    def __iter__(self) -> Iterator[Any]:
        """To be read: copies of it do so, too."""
        self._resolve()
        return super().__iter__()

    def keys(self) -> Any:
        """The same."""
        self._resolve()
        return super().keys()

    def items(self) -> Any:
        """The same."""
        self._resolve()
        return super().items()

    def __getitem__(self, name: str) -> Any:
        """The same."""
        self._resolve()
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The same."""
        self._resolve()
        return super().get(name, default)


def make_late(*kinds: type) -> None:
    """Have the annotations of these classes and of their methods be evaluable."""
    for kind in kinds:
        scope = kind.__module__
        for each in vars(kind).values():
            function = getattr(each, "fget", None) or getattr(each, "__func__", each)
            annotations = getattr(function, "__annotations__", None)
            if type(annotations) is dict:
                scope = function.__globals__["__name__"]
                function.__annotations__ = LateAnnotations(annotations)
        if type(vars(kind).get("__annotations__")) is dict:
            kind.__annotations__ = LateAnnotations(vars(kind)["__annotations__"], scope)


def resolve_all() -> None:
    """Make up for what the modules loaded so far have left to type checkers."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "redlock" and "__resolved__" not in vars(module):
            vars(module)["__resolved__"] = True
            _resolve(module)
            # What was put there passes by the package's `__getattr__`.
            make_late(*(each for each in vars(module).values() if _is_ours(each)))


def _is_ours(value: object) -> TypeGuard[type]:
    return isinstance(value, type) and value.__module__.partition(".")[0] == "redlock"


def _resolve(module: Any) -> None:
    import ast  # noqa: PLC0415 - seldom needed
    import contextlib  # noqa: PLC0415
    import inspect  # noqa: PLC0415
    import typing  # noqa: PLC0415

    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):  # the extension module; or there are no sources here
        return
    for block in tree.body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            names = dict(vars(module))
            for statement in block.body:
                with contextlib.suppress(Exception):  # an alias of what is no generic at runtime, or not installed
                    exec(compile(ast.Module([statement], []), str(module.__file__), "exec"), names)  # noqa: S102 - our own
            for name, value in {"Self": getattr(typing, "Self", typing.Any), **names}.items():
                vars(module).setdefault(name, value)
