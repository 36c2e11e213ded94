"Old import paths work for one version, and say where things are now."

import importlib
import subprocess
import sys
import warnings

import pytest
import torch

SHOWN = [  # by README, guide and model cards of version 0.1
    ("genbook.zoo", "export", "genbook.lab.pretrained"),
    ("genbook.zoo", "register_model", "genbook.lab.zoo"),
    ("genbook.zoo", "from_pretrained", "genbook.lab.pretrained"),
    ("genbook.runs", "Run", "genbook.lab.runs"),
    ("genbook.runs", "expand", "genbook.lab.jobs"),
    ("genbook.runs", "load", "genbook.lab.results"),
    ("genbook.fidelity", "protocol", "genbook.measure.protocol"),
    ("genbook.fidelity", "fid", "genbook.measure.inception"),
    ("genbook.fidelity", "classifier", "genbook.measure.judge"),
    ("genbook.likelihood", "evaluate", "genbook.measure.likelihood"),
    ("genbook.likelihood", "ais_nll", "genbook.measure.annealing"),
    ("genbook.viz", "image_grid", "genbook.lab.figures"),
    ("genbook.viz", "loss_curves", "genbook.lab.plots"),
    ("genbook.viz", "interpolator", "genbook.lab.explorers"),
    ("genbook.report", "build", "genbook.lab.report"),
    ("genbook.cli", "main", "genbook.lab.cli"),
    ("genbook.data", "load", "genbook.datasets"),
    ("genbook.data", "toy", "genbook.toys"),
    ("genbook.train", "lr_schedule", "genbook.optim"),
    ("genbook.train", "EMA", "genbook.optim"),
]


@pytest.mark.parametrize(("old", "name", "new"), SHOWN, ids=[f"{old}.{name}" for old, name, _ in SHOWN])
def test_an_old_path_gives_the_new_thing_and_names_it(old, name, new):
    module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is {new}.{name} from now on") as caught:
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(new), name)
    assert caught[0].filename == __file__


def test_what_never_was_is_not_there():
    import genbook.data
    import genbook.zoo

    for module in (genbook.zoo, genbook.data):
        with pytest.raises(AttributeError, match=f"{module.__name__}' has no attribute 'nothing'"):
            module.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from genbook import nothing  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("genbook.nothing")


def test_what_stayed_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        from genbook import create_model, from_pretrained, list_pretrained  # noqa: F401
        from genbook.data import Batches, Images  # noqa: F401
        from genbook.train import fit, mean_loss  # noqa: F401


def weights_after(make, data, k, model):
    "Weights after two iterations."
    from genbook.data import Batches

    torch.manual_seed(0)
    model = model()
    step, batches = make(model), Batches(data.train, 8, k=k)
    for key, _ in zip(batches, range(2), strict=False):
        step(*batches.fetch(key))
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("k", [1, 3])
def test_old_steps_train_as_they_did(k):
    "The critic's rate is constant and both use Adam with 0.5, unless something else is said; batches have k in front."
    from genbook import create_model, datasets
    from genbook.optim import constant, cosine
    from genbook.steps import Step

    with pytest.warns(DeprecationWarning, match="genbook.train.* is genbook.steps.Step from now on"):
        from genbook.train import AdversarialStep, LossStep
    data = datasets.load("digits")
    critic = {"lr": 1e-3, "schedule": constant(), "times": k}
    gan = lambda: create_model("gan_digits", data.image_shape, levels=17, zdim=4)
    new = lambda model: Step(model, lr=2e-4, betas=(0.5, 0.999), schedule=cosine(9), parts={"critic": critic}, device="cpu")
    old = lambda model: AdversarialStep(model, critic_lr=1e-3, schedule=cosine(9), device="cpu")
    assert torch.equal(weights_after(old, data, k, gan), weights_after(new, data, None if k == 1 else k, gan))
    assert LossStep is Step


def test_import_is_light_and_old_paths_load_only_what_they_need():
    code = "import genbook, genbook.cli, sys; assert not {'torch', 'numpy', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; genbook.cli.main; assert 'torch' not in sys.modules"], check=True)
