"Explorers: the script computes what torch does, in Node and in a browser; a saved page answers to keys, or keeps its picture."

import base64
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genbook import create_model, from_pretrained, list_pretrained
from genbook.core import GenbookError, assets
from genbook.datasets import load
from genbook.image_flows import ChannelNorm, ConcatELU, GatedBlock
from genbook.javascript import in_page, pack
from genbook.lab import explorers, figures, live
from genbook.nn import TOWERS, ResBlock, decoder
from genbook.style import mixed, truncated

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="needs Node: no node is on the PATH (Debian: apt install nodejs)")
PROGRAM = """
const [script, file, way] = process.argv.slice(2), {net, codes} = JSON.parse(require("fs").readFileSync(file));
require(script).network(net).then(f => console.log(JSON.stringify(codes.map(z => Array.from((way ? f[way] : f)(z).data)))));
"""
SIZES = {"vae-mnist": 40, "gan-mnist": 100, "ae-mnist": 32, "realnvp-mnist": 784, "style-fashion": 64}


def in_node(net, codes, folder, *way):
    "What the script makes of codes, (b, d) -> (b, values), and what it says where it fails."
    (folder / "given.json").write_text(json.dumps({"net": net, "codes": codes.tolist()}))
    (folder / "run.js").write_text(PROGRAM)
    done = subprocess.run([NODE, folder / "run.js", assets("explorer.js"), folder / "given.json", *way], capture_output=True, text=True)
    return (torch.tensor(json.loads(done.stdout)) if done.returncode == 0 else None), done.stderr


def drawn(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def random(module, seed=0):
    "Every weight and average drawn, in evaluation mode, as a page keeps it."
    g = torch.Generator().manual_seed(seed)
    for p in [*module.parameters(), *module.buffers()]:
        if p.is_floating_point():
            p.data = (0.3 * torch.randn(p.shape, generator=g) + (p.data.min() >= 0 and 1.0) * 1.0).half().float()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_var.abs_().add_(0.1)
            m.running_var.data = m.running_var.half().float()
    return module.eval().requires_grad_(False)


@needs_node
@pytest.mark.parametrize("name", SIZES)
def test_the_script_decodes_pretrained_models_as_torch_does(name, tmp_path):
    model, z = from_pretrained(name).requires_grad_(False), drawn(3, SIZES[name])
    out, said = in_node(in_page(model).packed(), z, tmp_path)
    assert out is not None, said
    assert (out - model.decode(z).flatten(1)).abs().max() < 1e-4  # of a flow: 0, since its pixels are whole numbers
    assert set(SIZES) < set(list_pretrained())


@needs_node
@pytest.mark.parametrize("coupling", ["affine", "logistics"])
def test_the_script_goes_from_an_image_to_its_code(coupling, tmp_path):
    model = create_model("realnvp_digits", (1, 8, 8), levels=17, coupling=coupling)
    model = from_pretrained("realnvp-mnist") if coupling == "logistics" else random(model)
    model.requires_grad_(False)
    v = 0.02 + 0.96 * torch.rand(2, model.zdim, generator=torch.Generator().manual_seed(0))
    out, said = in_node(in_page(model).packed(), v, tmp_path, "back")
    assert out is not None, said
    code = model.flow(model.logit(v.view(-1, *model.image_shape))[0])[0]
    assert (out - code).abs().max() < 1e-4 * code.abs().max().clamp(min=1) and code.std() > 0.1


@needs_node
def test_the_script_truncates_and_mixes_styles(tmp_path):
    model = from_pretrained("style-fashion").requires_grad_(False)
    net, (a, b) = model.generator, drawn(2, 64, 3)
    settings = [(psi, k) for psi in (0.0, 0.6, 1.0, 1.2) for k in (0, 2, net.layers)]
    rows = torch.stack([torch.cat([a, b, torch.tensor([psi, float(k)])]) for psi, k in settings])
    out, said = in_node(in_page(model).packed(), rows, tmp_path)
    assert out is not None, said
    styles = [mixed(*(truncated(net, net.styles(z[None]), psi) for z in (a, b)), k) for psi, k in settings]
    assert (out - model.decode_styles(torch.cat(styles)).flatten(1)).abs().max() < 1e-4
    assert (out[0] - out[2]).abs().max() < 1e-5 < (out[6] - out[8]).abs().max()  # at 0 all codes are one image


LAYERS = {
    "batch norm, strides, extra": [
        nn.ConvTranspose2d(4, 3, 4, 2, 1, 1, bias=False),
        nn.BatchNorm2d(3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(3, 2, 3, 2, 1),
    ],
    "uneven": [nn.ConvTranspose2d(4, 2, (3, 2), (2, 1), (1, 0), (1, 0)), nn.ELU(0.7), nn.Conv2d(2, 3, (1, 3), (1, 2), (0, 1))],
    "group norm, up, down": [
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.AvgPool2d(2),
        nn.GELU(),
    ],
    "padding": [nn.ZeroPad2d((1, 2, 0, 3)), nn.Tanh(), nn.ZeroPad2d((-1, -1, -1, 0)), nn.Softplus(), nn.Hardtanh(0.2, 0.9)],
    "residual": [ResBlock(4, 6, "gelu", "up"), ResBlock(6, 6, "silu"), ResBlock(6, 2, "relu", "down")],
    "gated": [GatedBlock(4, True), ChannelNorm(4), ConcatELU(), nn.Conv2d(8, 1, 3, padding=1), nn.Flatten(), nn.Dropout(), nn.Identity()],
}


@needs_node
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_that_of_torch(name, tmp_path):
    module = random(nn.Sequential(nn.Linear(5, 4 * 4 * 4), nn.Unflatten(1, (4, 4, 4)), *LAYERS[name], nn.Sigmoid()))
    z = 3 * drawn(3, 5)
    out, said = in_node(in_page(module).packed(), z, tmp_path)
    assert out is not None, said
    expected = module(z).flatten(1)
    assert out.shape == expected.shape and (out - expected).abs().max() < 1e-5 and expected.std() > 0.01


@needs_node
@pytest.mark.parametrize("tower", TOWERS)
def test_decoders_of_every_tower_run_in_a_page(tower, tmp_path):
    module = random(decoder(tower, (1, 16, 16), 6, width=8, depth=2))
    z = drawn(2, 6)
    out, said = in_node(in_page(module).packed(), z, tmp_path)
    assert out is not None, said
    expected = module(z).flatten(1)
    assert (out - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)


@needs_node
def test_a_layer_that_the_script_does_not_have_is_an_error(tmp_path):
    out, said = in_node({"layers": [{"op": "attention"}], "packs": [pack({})]}, torch.zeros(1, 2), tmp_path)
    assert out is None and "unknown layer attention" in said


@pytest.mark.parametrize(
    "module, said",
    [
        (nn.Sequential(nn.Linear(2, 2), nn.PReLU()), "no layer PReLU; allowed: AvgPool2d"),
        (nn.Conv2d(2, 2, 3, groups=2), "groups, dilation or a padding"),
        (nn.Conv2d(2, 2, 3, padding_mode="circular"), "groups, dilation or a padding"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "to the nearest pixel"),
        (nn.BatchNorm2d(2, track_running_stats=False), "keeps no averages"),
    ],
)
def test_what_a_page_cannot_do_is_said_in_a_line(module, said):
    with pytest.raises(GenbookError, match=said) as e:
        in_page(module)
    assert "\n" not in str(e.value)


def test_weights_that_were_changed_are_not_called_pretrained():
    model = from_pretrained("vae-mnist").requires_grad_(False)
    model.decoder[0].weight += 1e-3
    with pytest.raises(GenbookError, match="not those of 'vae-mnist': decoder.0.weight"):
        explorers.latent_explorer(model, torch.zeros(40), pretrained="vae-mnist")


# ---- in a page


def latent(**how):
    model = from_pretrained("vae-mnist").requires_grad_(False)
    return model, explorers.latent_explorer(
        model, drawn(2, 40), dims=[3, 1, 7], names=["one", "<two> & </script>"], pretrained="vae-mnist", **how
    )


def test_a_notebook_keeps_a_name_and_a_page_the_weights():
    _, explorer = latent()
    kept, page = json.dumps(explorer.spec), explorer.page()
    assert len(kept) < 2_000 and 1_500_000 < len(page) < 3_000_000
    assert page.count("</script>") == 3  # text of a name ends none
    assert 'alt="The latent space"' in page


def test_frames_are_all_settings_in_order():
    draw = lambda a, b: torch.full((2, 1, 3, 3), (ord(a) - 97) * 0.4 + b * 0.1)
    made = explorers.frames(draw, {"a": ["a", "b"], "b": [0, 1, 2]}, figures.image_grid(torch.zeros(1, 1, 3, 3)))
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.about["sprite"]))))
    assert image[::3, 0].tolist() == [round(255 * v) for v in (0, 0.1, 0.2, 0.4, 0.5, 0.6)]
    assert [c["start"] for c in made.about["controls"]] == [0, 1]


def by_script(page):
    "Wait until the explorers of a page answer."
    page.wait_for_function(
        "document.querySelector('.gb-explorer') && !document.querySelector('.gb-explorer:not([data-mounted=done])')", timeout=60_000
    )


browser = pytest.importorskip("test_browser", reason="needs playwright: pip install playwright -c constraints.txt")
needs_browser = pytest.mark.skipif(not browser.CHROMIUM, reason="needs a browser: Chromium or Chrome is not installed")


@pytest.fixture
def saved(tmp_path):
    "A page on a disk with four explorers."
    model, explorer = latent()
    gan = from_pretrained("gan-mnist").requires_grad_(False)
    walk = explorers.interpolator(gan, *drawn(2, 100), random=True, pretrained="gan-mnist", n=2)
    film = explorers.film_strip({0: torch.zeros(2, 1, 8, 8), 50: torch.ones(2, 1, 8, 8)}, explorer.figure)
    pieces = "".join(e.page() for e in (explorer, walk, film))
    (tmp_path / "saved.html").write_text(
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>t</title><body><main>{pieces}</main>'
    )
    return tmp_path / "saved.html"


PIXELS = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).filter((v, i) => i % 4 === 0)"


@needs_browser
def test_a_saved_page_answers_to_keys_and_touch_and_shows_what_torch_decodes(saved):
    model, explorer = latent()
    with browser.opened() as (page, wrong):
        page.goto(saved.as_uri())
        by_script(page)
        assert not wrong
        net, z = explorer.network.packed(), drawn(2, 40, 5)
        out = page.evaluate("([net, codes]) => genbook.network(net).then(f => codes.map(z => Array.from(f(z).data)))", [net, z.tolist()])
        assert (torch.tensor(out) - model.decode(z).flatten(1)).abs().max() < 1e-4
        host = page.locator(".gb-explorer").first
        seen, knob = host.locator("canvas").first, host.locator("input[type=range]").first
        knob.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        code = explorer.spec["starts"][0]
        code[3] = float(knob.input_value())
        expected = (255 * model.decode(torch.tensor([code]))[0, 0]).round().flatten()
        assert (torch.tensor(seen.evaluate(PIXELS)) - expected).abs().max() <= 1
        before = seen.evaluate(PIXELS)
        host.locator("select").select_option("1")
        page.wait_for_timeout(300)
        assert seen.evaluate(PIXELS) != before
        pad, before = host.locator(".gb-pad"), seen.evaluate(PIXELS)
        pad.focus()
        page.keyboard.press("ArrowUp")
        page.wait_for_timeout(300)
        middle = seen.evaluate(PIXELS)
        assert middle != before
        box = pad.bounding_box()
        page.mouse.click(box["x"] + 20, box["y"] + 200)
        page.wait_for_timeout(300)
        assert seen.evaluate(PIXELS) != middle and float(knob.input_value()) < -2
        film = page.locator(".gb-explorer").nth(2)
        assert set(film.locator("canvas").evaluate(PIXELS)) == {255}
        film.locator("input").fill("0")
        assert film.locator("output").inner_text() == "0" and 0 in film.locator("canvas").evaluate(PIXELS)
        before = page.locator(".gb-explorer").nth(1).locator("canvas").evaluate(PIXELS)
        page.get_by_role("button", name="two new ends").click()
        page.wait_for_timeout(600)
        assert page.locator(".gb-explorer").nth(1).locator("canvas").evaluate(PIXELS) != before and not wrong


@needs_browser
def test_a_page_goes_there_and_back_and_turns_both_dials_of_styles(tmp_path):
    flow, gan = (from_pretrained(name).requires_grad_(False) for name in ("realnvp-mnist", "style-fashion"))
    there = live.flow_explorer(flow, load("mnist-mini").test.float()[0][:2], pretrained="realnvp-mnist")
    dials = live.style_explorer(gan, drawn(2, 64), pretrained="style-fashion")
    body = there.page() + dials.page()
    assert len(body) < 3_600_000  # the weights of two models
    (tmp_path / "live.html").write_text(f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>t</title><body><main>{body}</main>')
    with browser.opened() as (page, wrong):
        page.goto((tmp_path / "live.html").as_uri())
        by_script(page)
        one, two = page.locator(".gb-explorer").all()
        assert "784 of 784 pixels are as they were" in one.inner_text() and not wrong
        image, back = one.locator("canvas").first, one.locator("canvas").last
        assert image.evaluate(PIXELS) == back.evaluate(PIXELS)
        one.locator("input[type=range]").first.fill("1")  # all the way to the other image
        page.wait_for_timeout(4000)
        assert back.evaluate(PIXELS) == (255 * load("mnist-mini").test.float()[0][1]).round().flatten().tolist()
        psi, crossing = two.locator("input[type=range]").all()
        psi.fill("1"), crossing.fill("2")
        page.wait_for_timeout(2000)
        w = gan.generator.styles(torch.tensor(dials.spec["codes"]))
        expected = (255 * gan.decode_styles(mixed(w[:1], w[1:], 2))).round().flatten()
        assert (torch.tensor(two.locator("canvas").nth(1).evaluate(PIXELS)) - expected).abs().max() <= 1


@needs_browser
@pytest.mark.parametrize("how", ["no script", "a script that fails"])
def test_the_picture_stays_where_no_script_runs(how, saved):
    if how == "a script that fails":
        saved.write_text(saved.read_text().replace('"op": "reshape"', '"op": "unheard of"'))
    with browser.playwright.sync_playwright() as tool:
        chrome = tool.chromium.launch(executable_path=browser.CHROMIUM, args=["--no-sandbox"])
        page = chrome.new_context(java_script_enabled=how != "no script").new_page()
        page.goto(saved.as_uri())
        page.wait_for_timeout(500)
        assert page.locator(".gb-explorer > img").first.is_visible()
        chrome.close()


@needs_browser
def test_explorers_fit_a_phone(saved):
    with browser.opened() as (page, wrong):
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto(saved.as_uri())
        by_script(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not wrong


@needs_browser
def test_the_explorers_of_the_book_answer(book):
    "On the plain pages of the chapters with a pretrained model: each is mounted, and its page holds the weights once."
    for name in ("11_vae", "21_realnvp", "30_gan", "34_modern_gan", "40_autoregressive"):
        path = book / f"models/{name}.html"
        with browser.opened() as (page, wrong):
            page.goto(path.as_uri())
            by_script(page)
            assert not wrong and path.read_text().count("data-weights=") <= 2, name  # the weights, and where the script looks for them
            knob = page.locator(".gb-explorer input[type=range]").last
            seen = lambda page=page: [c.evaluate(PIXELS) for c in page.locator(".gb-explorer").last.locator("canvas").all()]
            before = seen()
            knob.focus()
            page.keyboard.press("Home")
            page.wait_for_timeout(3000 if name == "21_realnvp" else 500)
            assert seen() != before, name
