"""Runs on several devices: what two processes compute together is what one does with the same batches.

Run as a script, this file is one of those processes: it trains every model of `MODELS` for ten steps and prints the losses; on CUDA
(`test_devices.py cuda`) those with batch norm.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
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
NORMED = ["vae_conv_s3", "gan_fc_s1", "gan_dcgan", "cgan_s1"]


class Doubled(Batches):
    def fetch(self, key, generator=None):
        x, y = super().fetch(key, generator)
        return x.double(), y


def losses(name, config, batch=12, steps=10, device="cpu"):
    "The losses of the first steps of a model of the zoo on the embedded digits."
    torch.manual_seed(0)
    model, images = create_model(name, (1, 8, 8), **{"levels": 17} | config), load("digits").train
    two = hasattr(model, "critic_loss")
    step = (AdversarialStep if two else LossStep)(model.double(), lr=1e-3, device=device, precision="64-true")
    batches = Doubled(images, batch, k=2 if two else None, device=step.device)
    history = fit(step, batches, steps, log_every=1, capture=False, progress=False)
    return {k: history.column(f"train/{k}")[1] for k in (("critic", "generator") if two else ("total",))}


def main(device="cpu"):
    torch.set_default_dtype(torch.float64)
    found = {name: losses(name, MODELS[name], device=device) for name in (MODELS if device == "cpu" else NORMED)}
    try:
        losses("ae_mlp", {}, batch=13, device=device)
    except GenbookError as e:
        found["thirteen"] = str(e)
    if process_rank()[0] == 0:
        print(json.dumps(found))


def environment(folder, rank, n):
    "What torchrun tells a process."
    interface = dict.fromkeys(["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"], "lo" if sys.platform == "linux" else "lo0")
    loopback = interface | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "TORCHELASTIC_RUN_ID": "test"}
    return loopback | {k: str(v) for k, v in ranks.items()} | {"GENBOOK_MEET": f"file://{folder}/meet"}


def by_one_and_two(folder, *device):
    "What one process and what two print."
    plain = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, *device]
    start = lambda env: subprocess.Popen(command, env=plain | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [start({}), *(start(environment(folder, rank, 2)) for rank in range(2))]
    out = [p.communicate(timeout=240) for p in processes]
    assert not any(p.returncode for p in processes), "\n".join(err for _, err in out)
    return [json.loads(out[i][0].splitlines()[-1]) for i in (0, 1)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "The losses by one process and by two."
    return by_one_and_two(tmp_path_factory.mktemp("devices"))


def check_agreement(found, name):
    one, two = (f[name] for f in found)
    assert one.keys() == two.keys()
    for player in one:
        a, b = torch.tensor(one[player], dtype=torch.float64), torch.tensor(two[player], dtype=torch.float64)
        assert len(a) == 10 and len(a.unique()) > 1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_compute_what_one_does(found, name):
    check_agreement(found, name)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL takes one process a GPU: needs two")
def test_nccl_synchronises_batch_norm(tmp_path):
    found = by_one_and_two(tmp_path, "cuda")
    for name in NORMED:
        check_agreement(found, name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batch_norm_of_one_device_is_the_usual_one(device):
    "Its formula, which sums over the devices: outputs, gradients, averages."

    def once(mode):
        torch.manual_seed(0)
        net, x = torch.nn.BatchNorm2d(3).to(device), torch.randn(8, 3, 5, 5, device=device, requires_grad=True)
        with mode:
            out = net(x)
        (out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
        return out, x.grad, net.weight.grad, net.bias.grad, net.running_mean, net.running_var

    for a, b in zip(once(WholeBatch(8, 0, 1)), once(nullcontext()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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
    main(*sys.argv[1:])
