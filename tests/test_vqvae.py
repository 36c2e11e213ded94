"Discrete codes: the book through training and evaluation, both stages as one model, mistakes."

import pytest
import torch

from genbook import datasets, from_pretrained
from genbook.core import GenbookError
from genbook.lab.pretrained import export
from genbook.lab.training import Training
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


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda m: m.decode(torch.full((1, 4, 4), 32)), ("codes:", "0 to 31")),
        (lambda m: m.decode(torch.full((1, 4, 4), -1)), ("codes:", "0 to 31")),
        (lambda m: m.decode(torch.zeros(1, 4, 4)), ("codes:", "int64")),
        (lambda m: m.decode(torch.zeros(1, 3, 4, dtype=torch.int64)), ("codes:", "(n, 4, 4)")),
        (lambda m: m.sample(2, 10), ("y:", "0 to 9")),
        (lambda m: m.sample(2, temperature=0.0), ("temperature: 0.0",)),
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
