"Discrete codes: the book through training and evaluation, both stages as one model, mistakes."

import json
import subprocess
import sys

import pytest
import torch

from genbook import datasets, from_pretrained
from genbook.core import GenbookError
from genbook.lab.experiments import get_experiment
from genbook.lab.jobs import expand
from genbook.lab.pretrained import export
from genbook.lab.training import Training, replayed, training_of
from genbook.lab.verify import compare
from genbook.measure.likelihood import evaluate
from genbook.models.vqvae import CONFIGS, VQVAE, MovingCodebook, TrainedCodec, perplexity, rate_distortion

HOW = {"steps": 40, "batch_size": 32, "warmup": 5, "every": 20, "prior": {"steps": 30, "lr": 3e-3, "clip": 1.0}}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    made = Training("vqvae", "digits", None, "digits", {"conditional": True}, HOW, device="cpu")
    made.fit(progress=False)
    return made


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300 and all(w in text for w in words), text


def test_both_stages_are_trained_and_evaluated_with_the_codes_counted(trained):
    model, ds = trained.model, trained.data
    torch.manual_seed(0)
    untrained = VQVAE((1, 8, 8), levels=17, conditional=True, **CONFIGS["digits"]).eval()
    found, before = ({**evaluate(m, ds.test), **rate_distortion(m, ds.test)} for m in (model, untrained))
    assert found["bits_per_dim"].estimator == "bound" and found["bits_per_dim__codes"].value > 0
    total = found["bits_per_dim__pixels"].value + found["bits_per_dim__codes"].value
    assert found["bits_per_dim"].value == pytest.approx(total, abs=1e-6)
    assert found["bits_per_dim"].value < 0.9 * before["bits_per_dim"].value and found["mse"].value < before["mse"].value
    assert 1 < before["perplexity"].value < 32 and 4 < found["perplexity"].value <= 32
    assert list(trained.histories) == ["main", "prior"] and not any(p.requires_grad for p in model.parameters())


def test_the_export_is_one_model(trained, tmp_path):
    made = export(trained.model, tmp_path / "model", name="vqvae_digits", config={"conditional": True})
    twin, y = from_pretrained(made), torch.arange(5)
    assert twin.state_dict().keys() == trained.model.state_dict().keys()
    a, b = (m.sample(5, y, generator=generator()) for m in (trained.model, twin))
    assert not torch.equal(a, trained.model.sample(5, y + 1, generator=generator()))  # labels change what the same noise gives
    assert a.shape == (5, 1, 8, 8) and (a - b).abs().max() < 0.3  # weights are kept in half precision


def test_a_seed_decides_the_training_and_revived_vectors_too():
    how = HOW | {"steps": 8, "prior": {"steps": 4}}
    runs = []
    for _ in range(2):
        made = Training("vqvae", "digits", None, "digits", train_args=how, seed=5, device="cpu")
        made.fit(progress=False)
        runs.append({k: v.clone() for k, v in made.model.state_dict().items()})
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())


def test_a_vector_that_is_hardly_used_is_moved_to_what_came_in():
    torch.manual_seed(0)
    book = MovingCodebook(4, 2, decay=0.5, revive=0.5).train()
    book.table.copy_(torch.tensor([[0.0, 0.0], [90.0, 90.0], [91.0, 90.0], [92.0, 90.0]]))
    z = torch.randn(2, 2, 3, 3)
    book(z), book.update()
    rows = z.movedim(1, -1).reshape(-1, 2)
    assert all((rows - e).abs().sum(1).min() < 1e-6 for e in book.table[1:])
    torch.testing.assert_close(book.table[0], rows.mean(0))  # the one that was used stays where its mean is
    kept = book.table.clone()
    book.update()
    assert torch.equal(book.table, kept)  # there is nothing new


def test_the_perceptual_term_reaches_the_decoder():
    torch.manual_seed(0)
    codec = TrainedCodec((1, 8, 8), levels=17, codes=8, dim=4, width=8, depth=1, halvings=1, perceptual=3.0)
    with pytest.raises(GenbookError) as error:
        codec.loss(torch.zeros(1, 1, 8, 8))
    one_line(error, "perceptual", "watch")
    codec.watch(lambda x: x.flatten(1)[:, :2])
    x = datasets.load("digits").test.float(slice(0, 4))[0]
    terms = codec.loss(x)
    p = codec.of_codes(codec.codes(x))
    expected = 3.0 * (p.mean - x).flatten(1)[:, :2].square().sum(1)
    torch.testing.assert_close(terms.perceptual, expected)
    torch.testing.assert_close(terms.total, terms.rec + terms.penalty + terms.perceptual)
    assert torch.autograd.grad(terms.perceptual.sum(), codec.decoder[0].weight)[0].any()
    assert not any("eyes" in k for k in codec.state_dict())


def test_a_perceptual_training_needs_no_notebook_and_repeats_itself():
    "The model is given the classifier where it is built; who asks for no such term gets none, and the same noise as before."
    job = expand(get_experiment("vqvae-parts-digits-perceptual"))[0]
    first, second = (replayed(training_of(job)) for _ in range(2))
    assert compare(first, second).state == "same" and min(first["terms"]["perceptual"]) > 0
    noise = [Training("vqvae", "digits", None, "digits", {"perceptual": w}, HOW, device="cpu").noise for w in (0.0, 1.0)]
    assert torch.equal(noise[0]["torch"], noise[1]["torch"])
    assert Training("vqvae", "digits", None, "digits", {}, HOW, device="cpu").model.codec.eyes is None


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda m: m.decode(torch.full((1, 4, 4), 32)), ("codes:", "0 to 31")),
        (lambda m: m.decode(torch.full((1, 4, 4), -1)), ("codes:", "0 to 31")),
        (lambda m: m.decode(torch.zeros(1, 4, 4)), ("codes:", "int64")),
        (lambda m: m.decode(torch.zeros(1, 3, 4, dtype=torch.int64)), ("codes:", "(n, 4, 4)")),
        (lambda m: m.sample(2, 10), ("y:", "0 to 9")),
        (lambda m: m.sample(2, temperature=0.0), ("temperature: 0.0",)),
        (lambda m: m.sample(2, temperature=-1.0), ("temperature: -1.0",)),
        (lambda m: VQVAE((1, 8, 8), **CONFIGS["digits"]).sample(2, 3), ("y:", "not conditional")),
        (lambda m: m.log_prob(torch.zeros(1, 1, 8, 8), 10), ("y:", "0 to 9")),
        (lambda m: m.stage("prio", None), ("stage: 'prio'", "did you mean 'prior'?")),
        (lambda m: VQVAE((1, 9, 8)), ("image_shape", "9x8")),
        (lambda m: VQVAE((1, 8, 8), codes=1), ("codes: 1",)),
        (lambda m: VQVAE((1, 8, 8), scalars=(8, 1)), ("scalars: (8, 1)",)),
        (lambda m: VQVAE((1, 8, 8), likelihood="gaussian"), ("likelihood: 'gaussian'",)),
    ],
)
def test_mistakes_get_one_line(trained, wrong, words):
    with pytest.raises(GenbookError) as error:
        wrong(trained.model)
    one_line(error, *words)


def test_perplexity_counts():
    assert perplexity(torch.arange(6), 9) == pytest.approx(6.0)


MEASURED = """
import json, resource, time, torch
from genbook.models.vqvae import CONFIGS, VQVAE
from genbook.steps import Step
torch.set_num_threads(1)
model = VQVAE((1, 28, 28), **CONFIGS["laptop"])
codec = Step(model.codec, lr=1e-3, optimizer="adamw", clip=1.0, device="cpu")
prior = Step(model.prior, lr=1e-3, optimizer="adamw", clip=1.0, ema=0.999, device="cpu")
for _ in range(3):
    codec(torch.randint(256, (32, 1, 28, 28)) / 255)
    prior(torch.randint(128, (32, 7, 7)))
began = time.process_time()
model.eval().sample(64, generator=torch.Generator().manual_seed(0))
print(json.dumps([time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


@pytest.mark.slow
def test_sixty_four_digits_take_less_than_twenty_seconds_and_training_less_than_four_gigabytes():
    out = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True).stdout
    seconds, gigabytes = json.loads(out)
    assert seconds < 20 and gigabytes < 4
