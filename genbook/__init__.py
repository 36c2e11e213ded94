"Deep generative models: derived, tested, fast, and measured by one protocol."

__version__ = "0.1.0"

_LAZY = dict.fromkeys(("create_model", "from_pretrained", "list_models", "register_model"), "zoo")
__all__ = list(_LAZY)


def __getattr__(name):
    "Public names are imported when they are first used, so that `import genbook` needs no torch."
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"genbook.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'genbook' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
