"""Train Transformers with doubly-stochastic attention, compile them with ASAP, measure both."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asap_exp.compiling import compile, drift, load_compiled, save_compiled

__version__ = "0.1.0"
__all__ = ["compile", "drift", "load_compiled", "save_compiled"]


def __getattr__(name: str) -> Any:
    """Return one of the functions for any model, loaded on first access."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from asap_exp import compiling

    return getattr(compiling, name)


def __dir__() -> list[str]:
    """List the functions for any model too, which are not loaded yet."""
    return sorted({*globals(), *__all__})
