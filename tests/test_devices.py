"""Runs on several devices: what two processes compute together is what one does with the same batches.

Run as a script, this file is one of those processes: it trains every model of `MODELS` for ten steps and prints the losses.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genbook.core import GenbookError, process_rank
from genbook.data import Batches, load
from genbook.train import AdversarialStep, LossStep, WholeBatch, fit
from genbook.zoo import create_model

ROOT = Path(__file__).parents[1]
MODELS = {
    "ae_mlp": {"width": 16},
    "ae_resnet": {"width": 8},
    "vae_mlp_digits": {"k": 3, "width": 16},
    "vae_mlp": {"free_bits": 0.05, "width": 16, "levels": 2},
    "vae_resnet": {"kl": "adaptive", "kl_args": {"target": 1.0, "kp": 1.0}, "width": 8},
    "vae_conv_s3": {"width": 8},  # batch norm
    "flow_vae_mlp_digits": {"width": 16},
    "flow_vae_iaf_digits": {"width": 16},
    "realnvp_digits": {"width": 8},
    "fvae_digits": {"width": 8},
    "gan_digits": {},
    "gan_fc_s0": {"dropout": 0.0},
    "gan_fc_s1": {},  # batch norm
    "gan_dcgan": {"width": 8},  # batch norm
    "wgan_digits": {},  # gradient penalty
    "wgan_clip_digits": {},
    "wgan_sngan_digits": {},
    "wgan_rals_digits": {"augment": "color,translation,cutout"},  # means of scores over the batch
    "cgan_digits": {},
    "cgan_s1": {"width": 8},  # batch norm, feature matching
}


class Doubled(Batches):
    def fetch(self, key, generator=None):
        x, y = super().fetch(key, generator)
        return x.double(), y


def losses(name, config, batch=12, steps=10):
    "The losses of the first steps of a model of the zoo on the embedded digits."
    torch.manual_seed(0)
    model, images = create_model(name, (1, 8, 8), **{"levels": 17} | config), load("digits").train
    two = hasattr(model, "critic_loss")
    step = (AdversarialStep if two else LossStep)(model.double(), lr=1e-3, device="cpu", precision="64-true")
    history = fit(step, Doubled(images, batch, k=2 if two else None), steps, log_every=1, progress=False)
    return {k: history.column(f"train/{k}")[1] for k in (("critic", "generator") if two else ("total",))}


def main():
    torch.set_default_dtype(torch.float64)
    found = {name: losses(name, config) for name, config in MODELS.items()}
    try:
        losses("ae_mlp", {}, batch=13)
    except GenbookError as e:
        found["thirteen"] = str(e)
    if process_rank()[0] == 0:
        print(json.dumps(found))


def environment(folder, rank, n):
    "What torchrun tells a process."
    loopback = {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "TORCHELASTIC_RUN_ID": "test"}
    return loopback | {k: str(v) for k, v in ranks.items()} | {"GENBOOK_MEET": f"file://{folder}/meet"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "The losses by one process and by two."
    folder = tmp_path_factory.mktemp("devices")
    plain = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__]
    start = lambda env: subprocess.Popen(command, env=plain | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [start({}), *(start(environment(folder, rank, 2)) for rank in range(2))]
    out = [p.communicate(timeout=240) for p in processes]
    assert not any(p.returncode for p in processes), "\n".join(err for _, err in out)
    return [json.loads(out[i][0].splitlines()[-1]) for i in (0, 1)]


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_compute_what_one_does(found, name):
    one, two = (f[name] for f in found)
    assert one.keys() == two.keys()
    for player in one:
        a, b = torch.tensor(one[player], dtype=torch.float64), torch.tensor(two[player], dtype=torch.float64)
        assert len(a) == 10 and len(a.unique()) > 1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_batch_that_cannot_be_divided_is_named(found):
    assert "thirteen" not in found[0] and found[1]["thirteen"] == "batch_size: 13 is not a multiple of the 2 devices"


def test_dropout_differs_from_device_to_device():
    def mask(rank):
        torch.manual_seed(0)
        with WholeBatch(4, rank, 2):
            return torch.nn.functional.dropout(torch.ones(4, 50), 0.3, True), torch.rand(3)

    (a, after), (b, same) = mask(0), mask(1)
    assert not torch.equal(a, b) and torch.equal(after, same)  # the generators go on alike
    torch.testing.assert_close(torch.cat([a, b]).unique(), torch.tensor([0, 1 / 0.7]))


if __name__ == "__main__":
    main()
