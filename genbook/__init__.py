"Deep generative models: derived, tested, fast, and measured by one protocol."

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from warnings import warn

__version__ = "0.1.0"

_LAZY = dict.fromkeys(("create_model", "list_models", "register_model"), "lab.zoo")
_LAZY |= dict.fromkeys(("export", "from_pretrained", "list_pretrained"), "lab.pretrained")
__all__ = list(_LAZY)


def __getattr__(name):
    "Public names are imported when they are first used, so that `import genbook` needs no torch."
    if name in _LAZY:
        return getattr(import_module(f"genbook.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'genbook' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])


_MOVED = {  # modules of version 0.1 -> where to look for their names; they go with version 0.3
    "fidelity": "measure.judge measure.cache measure.distances measure.variety measure.copies measure.inception measure.protocol",
    "likelihood": "measure.likelihood measure.annealing",
    "viz": "lab.figures lab.plots lab.explorers",
    "runs": "lab.runs lab.experiments lab.jobs lab.launch lab.grid lab.results lab.tables core",
    "report": "lab.report",
    "zoo": "lab.zoo lab.pretrained",
    "cli": "lab.cli",
    "data": "datasets pictures toys",  # which is still there, without these
    "train": "optim history steps devices",
}


def _adversarial_step():
    "The step of two players as it was: a constant rate of the critic, batches (k, b, ...)."
    from genbook.optim import constant
    from genbook.steps import Step

    class AdversarialStep(Step):
        def __init__(self, model, *, lr=2e-4, critic_lr=None, critic_schedule=None, betas=(0.5, 0.999), **how):
            critic = {"lr": critic_lr or lr, "schedule": critic_schedule or constant()}
            super().__init__(model, lr=lr, betas=betas, parts={"critic": critic}, **how)

        def __call__(self, x, y=None):
            self.times = self.parts["critic"].times = len(x)
            return super().__call__(*((x, y) if len(x) > 1 else (x[0], None if y is None else y[0])))

    return AdversarialStep


def _forward(old):
    "The `__getattr__` of an old module."

    def find(name):
        if name[:2] != "__":
            if old == "train" and name in ("LossStep", "AdversarialStep"):
                warn(f"genbook.train.{name} is genbook.steps.Step from now on", DeprecationWarning, stacklevel=2)
                return import_module("genbook.steps").Step if name == "LossStep" else _adversarial_step()
            for place in _MOVED[old].split():
                module = import_module(f"genbook.{place}")
                if hasattr(module, name):
                    warn(f"genbook.{old}.{name} is genbook.{place}.{name} from now on", DeprecationWarning, stacklevel=2)
                    return getattr(module, name)
        raise AttributeError(f"module 'genbook.{old}' has no attribute {name!r}")

    return find


class _Moved:
    "Finds the old modules; `data` and `train` it lets be loaded, and adds what they had."

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        package, _, old = fullname.partition(".")
        if package != __name__ or old not in _MOVED:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None:
            return ModuleSpec(fullname, _Moved)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), _Moved.exec_module(module))
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        module.__getattr__ = _forward(module.__name__.partition(".")[2])


sys.meta_path[:] = [_Moved, *(finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_Moved")]
