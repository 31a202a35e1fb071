"""Methods by name."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from rholoss.arguments import model_of, optional, shown
from rholoss.selector import Selector
from rholoss.store import IrreducibleLossStore

Build = TypeVar("Build", bound=Callable[..., Selector])

_METHODS: dict[str, Callable[..., Selector]] = {}
_INGREDIENTS = ("store", "proxy", "irreducible_model")


def register(name: str) -> Callable[[Build], Build]:
    """Register a selector class, or a function that builds a selector, under a name.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> import torch
        >>> from rholoss import Selector, build_selector, register
        >>> @register("newest")
        ... class NewestSelector(Selector):
        ...     def score(self, candidates):
        ...         return candidates.index.float()
        >>> loader = torch.utils.data.DataLoader(list(range(100, 110)), batch_size=2)
        >>> [batch.tolist() for batch in build_selector("newest", loader, keep=0.4)]
        [[103, 104], [108, 109]]
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"register takes a name, as in @register('newest'), got {shown(name)}")

    def add(build: Build) -> Build:
        if name in _METHODS and _whence(_METHODS[name]) != _whence(build):  # a cell of a notebook may run again
            raise ValueError(f"a selector named {name!r} is registered already, {_METHODS[name].__name__}; choose another name")
        _METHODS[name] = build
        return build

    return add


def _whence(build: Callable[..., Selector]) -> tuple[str, str]:
    return build.__module__, build.__qualname__


def selector_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_METHODS)


def build_selector(
    selector: str | Callable[..., Selector] | Selector,
    loader: Any,
    model: Any = None,
    *,
    store: Any = None,
    proxy: Any = None,
    irreducible_model: Any = None,
    **options: Any,
) -> Selector:
    """Build a selector by name, so that methods can be compared in one loop.

    Args:
        selector: a registered name, a ``Selector`` class, a function that builds a selector, or a selector, which is returned.
        loader: see ``Selector``.
        model: see ``Selector``.
        store: irreducible losses, for the methods that take a store; others ignore it.
        proxy: a smaller model that scores, likewise.
        irreducible_model: a model that never trained on the loader's examples, likewise.
        **options: options of the method.

    Raises:
        ValueError: no method has this name, or it needs an ingredient that was not given.
    """
    if isinstance(selector, Selector):
        if selector.loader is not loader or options:
            raise ValueError("a selector that is built already keeps its own loader and options; pass its name or class instead")
        return selector
    if not (callable(selector) or isinstance(selector, str)):
        raise TypeError(f"selector must be a name, a class, a function that builds one, or a selector, got {shown(selector)}")
    build = selector if callable(selector) else _METHODS.get(selector)
    if build is None:
        close = difflib.get_close_matches(str(selector), _METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no selector is named {selector!r}; {hint}The names are {', '.join(selector_names())}")
    optional(model_of, proxy, "proxy")
    optional(model_of, irreducible_model, "irreducible_model")
    if not (store is None or isinstance(store, IrreducibleLossStore)):
        raise TypeError(f"store must be an IrreducibleLossStore, got {shown(store)}")
    given = dict(zip(_INGREDIENTS, (store, proxy, irreducible_model), strict=True))
    taken = inspect.signature(build).parameters
    needs = {name: given[name] for name in _INGREDIENTS if name in taken}
    missing = [name for name, value in needs.items() if value is None and taken[name].default is inspect.Parameter.empty]
    if missing:
        cure = f"pass {', '.join(f'{name}=' for name in missing)}"
        raise ValueError(f"{getattr(build, '__name__', build)} needs {' and '.join(missing)}; {cure}")
    given = {**{name: value for name, value in needs.items() if value is not None}, **options}
    try:
        inspect.signature(build).bind(loader, model, **given)
    except TypeError as error:
        raise TypeError(f"the selector {getattr(build, '__name__', build)} cannot be built: {error}") from None
    return build(loader, model, **given)
