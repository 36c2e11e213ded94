"Figures: pixels, labels and refusals; explorers: a figure for a program, a page for a front-end."

import base64
import io
import json
import sys
from types import SimpleNamespace

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from jupyter_client import BlockingKernelClient
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image

from genbook.core import GenbookError
from genbook.lab import explorers, figures, plots
from genbook.lab.runs import Run

GREY, RGB = (1, 28, 28), (3, 16, 16)


def pictures(n, shape=GREY, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def shown(fig):
    "What a notebook displays: (h, w, 3), and the size in CSS pixels."
    data, metadata = fig._repr_mimebundle_()
    image = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    return np.asarray(image), metadata["image/png"]


def texts(fig):
    fig.canvas.draw()
    found = fig.findobj(lambda a: isinstance(a, matplotlib.text.Text) and a.get_visible() and a.get_text().strip())
    return {t.get_text(): t.get_window_extent() for t in found}


def mosaic(fig):
    "The drawn cells as they arrive on the page, one device pixel taken from each square that stands for a pixel; squares must be uniform."
    image, _ = shown(fig)
    box = fig.axes[0].get_window_extent()
    left, top = round(box.x0), image.shape[0] - round(box.y1)
    drawn = image[top : top + round(box.height), left : left + round(box.width)]
    source = np.asarray(fig.axes[0].images[0].get_array())
    scale, rest = divmod(drawn.shape[1], source.shape[1])
    assert rest == 0 and scale >= 1 and drawn.shape[0] == scale * source.shape[0]
    blocks = drawn.reshape(source.shape[0], scale, source.shape[1], scale, 3)
    return blocks, source


@pytest.mark.parametrize("n, rows, columns", [(1, 1, 1), (10, 1, 10), (26, 3, 10), (64, 8, 8), (40, 4, 10), (121, 11, 11)])
@pytest.mark.parametrize("shape", [GREY, RGB])
def test_grid_is_crisp_and_in_order(n, rows, columns, shape):
    x = pictures(n, shape)
    blocks, source = mosaic(figures.image_grid(x))
    assert (blocks == blocks[:, :1, :, :1]).all(), "a square of a pixel is not uniform"
    assert np.array_equal(blocks[:, 0, :, 0], source)
    h, w = shape[1:]
    gap = max(1, w // 14)
    assert source.shape[:2] == (rows * (h + gap) - gap, columns * (w + gap) - gap)
    last, r, c = n - 1, (n - 1) // columns, (n - 1) % columns
    cell = source[r * (h + gap) : r * (h + gap) + h, c * (w + gap) : c * (w + gap) + w]
    expected = np.rint(255 * x[last].expand(3, -1, -1).permute(1, 2, 0).numpy())
    assert np.array_equal(cell, expected)
    if n < rows * columns:
        assert (source[-h:, -w:] == 255).all()  # an empty place is white


def test_grid_fits_the_page():
    for x, columns in ((pictures(200, RGB), 20), (pictures(8, (1, 8, 8)), 8), (pictures(64, (3, 64, 64)), 8)):
        _, size = shown(figures.image_grid(x, ncols=columns, row_labels=[f"row number {i}" for i in range(-(-len(x) // columns))]))
        assert size["width"] <= 96 * figures.WIDTH + 20


def test_labels_are_inside_and_apart():
    x = pictures(6)
    labelled = figures.image_grid(
        x, ncols=3, titles=list("abcdef"), row_labels=["a long label of a row", "y"], col_labels=["p", "q", "r"], title="above all"
    )
    for fig in (labelled, figures.nearest_images(x[:2], x, 3), figures.reconstructions(x, {"a model": x}, titles=range(6))):
        boxes = texts(fig)
        width, height = fig.get_size_inches() * fig.dpi
        for label, box in boxes.items():
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{label!r} is cut off"
        items = list(boxes.items())
        for i, (a, box) in enumerate(items):
            for b, other in items[i + 1 :]:
                assert not box.overlaps(other), f"{a!r} lies on {b!r}"
    assert {"a long label of a row", "above all", "f", "q"} <= texts(labelled).keys()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: figures.image_grid(pictures(4) + 0.5), "x: values from"),
        (lambda: figures.image_grid(-pictures(4)), "x: values from"),
        (lambda: figures.image_grid(pictures(4) * torch.tensor(float("nan"))), "x: 3136 of 3136 values are not finite"),
        (lambda: figures.image_grid(pictures(0)), r"x: shape \(0, 1, 28, 28\)"),
        (lambda: figures.image_grid(torch.rand(4, 2, 8, 8)), "with c = 1 or 3"),
        (lambda: figures.image_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)), "x: type uint8"),
        (lambda: figures.image_grid(pictures(4), ncols=0), "ncols: 0"),
        (lambda: figures.image_grid(pictures(4), ncols=2, row_labels=["a"]), "row_labels: 1 labels for 2"),
        (lambda: figures.image_grid(pictures(4), ncols=2, col_labels=["a"]), "col_labels: 1 labels for 2"),
        (lambda: figures.reconstructions(pictures(4), {"vae": pictures(3)}), r"recons\['vae'\]: shape"),
        (lambda: figures.reconstructions(pictures(4), {"vae": 2 * pictures(4)}), r"recons\['vae'\]: values"),
        (lambda: figures.nearest_images(pictures(2), pictures(3), 4), "k: 4"),
        (lambda: plots.progress_strip([pictures(2)], [0, 1]), "frames: 1"),
        (lambda: plots.progress_strip([pictures(2), pictures(3)], [0, 1]), "frames: 2"),
        (lambda: explorers.traversal_grid(lambda z: z, torch.zeros(3), dims=[3]), r"dims: \[3\]"),
        (lambda: explorers.traversal_grid(lambda z: 3 + z.view(-1, 1, 1, 3), torch.zeros(3)), r"model\(z\): values"),
        (lambda: explorers.interpolation_grid(lambda z: z, torch.ones(3), torch.ones(4)), "z1: shape"),
        (lambda: explorers.interpolation_grid(lambda z: z, torch.ones(3), torch.ones(3), path="sherical"), "did you mean 'spherical'"),
        (lambda: explorers.lerp(torch.ones(3), torch.ones(3), 1), "n: 1"),
        (lambda: plots.smooth([1.0], 1.0), "weight: 1.0"),
        (lambda: plots.curve([1, 2], {"a": [1, 2, 3]}, xlabel="x", ylabel="y"), "series 'a'"),
        (lambda: plots.latent_scatter(torch.rand(5, 1)), r"z: shape \(5, 1\)"),
        (lambda: plots.latent_scatter(torch.rand(5, 3), method="tsne"), "method: 'tsne'"),
        (lambda: plots.density_field(lambda p: p), "log_prob: it gave shape"),
        (lambda: figures.save(figures.subplots()[0], "a.jpg"), "path: '.jpg'"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(GenbookError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def every_figure():
    z, y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    decode = lambda z: torch.sigmoid(z.view(-1, 1, 2, 2))
    rows = [{"fit": "main", "step": i, "train/total": 9.0 - i, "train/kl": 1.0 * i, "train/lr": 1e-3} for i in range(1, 9)]
    rows += [{"fit": "main", "step": 8, "valid/total": 1.0}]
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    return {
        "image_grid": figures.image_grid(pictures(3)),
        "reconstructions": figures.reconstructions(pictures(3), pictures(3)),
        "nearest_images": figures.nearest_images(pictures(2), pictures(5), 2),
        "loss_curves": plots.loss_curves(rows),
        "progress_strip": plots.progress_strip(torch.stack([pictures(2), pictures(2)]), [0, 10]),
        "curve": plots.curve([8, 16], [2.0, 1.0], [0.1, 0.1], xlabel="d", ylabel="MSE", references={"PCA": 1.5}, xscale="log"),
        "latent_scatter": plots.latent_scatter(z, y, ["a", "b", "c"]),
        "traversal_grid": explorers.traversal_grid(decode, z[0]),
        "interpolation_grid": explorers.interpolation_grid(decode, z[0], z[1]),
        "kl_bars": plots.kl_bars({"a": z[0].abs(), "b": 3 * z[1].abs()}, threshold=0.5),
        "density_field": plots.density_field({"p": normal.log_prob, "samples": None}, samples=normal.sample((9,))),
    }


def test_figures_are_shown_once_in_one_style_and_small():
    with matplotlib.rc_context({"axes.grid": False, "font.size": 30}):
        before = dict(matplotlib.rcParams)
        figures = every_figure()
        bundles = {name: fig._repr_mimebundle_()[0]["image/png"] for name, fig in figures.items()}
        assert dict(matplotlib.rcParams) == before  # a figure changes nothing for the notebook
    for name, fig in figures.items():
        assert isinstance(fig, Figure), name
        assert {t.get_fontfamily()[0] for t in fig.findobj(matplotlib.text.Text)} == {"DejaVu Sans"}, name
        assert max(t.get_fontsize() for t in fig.findobj(matplotlib.text.Text)) < 12, name
        corners = np.asarray(Image.open(io.BytesIO(base64.b64decode(bundles[name]))).convert("RGB"))[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == 255).all(), f"{name}: the background is not white"
        assert len(bundles[name]) < 60_000, name
        assert fig._repr_mimebundle_()[0]["image/png"] == bundles[name], f"{name}: shown a second time it differs"
        for ax in fig.axes:
            if ax.axison and not ax.images and ax.lines:
                assert ax.get_xlabel() and ax.get_ylabel(), name
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []  # pyplot would show them again


def test_palette_of_256_keeps_the_colours_of_a_plot():
    fig = plots.latent_scatter(torch.randn(500, 2), torch.arange(500) % 10)
    true = io.BytesIO()
    fig.savefig(true, format="png")
    true = np.asarray(Image.open(true).convert("RGB")).astype(int)
    assert np.abs(shown(fig)[0] - true).max() <= 24


def test_a_recorded_plot_has_its_vectors_and_pictures_have_none(tmp_path):
    curve, grid, cloud = plots.curve([1, 2], [2.0, 1.0], xlabel="d", ylabel="MSE"), figures.image_grid(pictures(4)), figures.Plot()
    cloud.subplots().plot(torch.rand(9000), "o")
    assert "image/svg+xml" not in curve._repr_mimebundle_()[0]
    run = Run(tmp_path / "runs/demo/a")
    shown = {name: run.figure(fig, name)._repr_mimebundle_() for name, fig in (("curve", curve), ("cloud", cloud), ("grid", grid))}
    assert {name for name, (data, _) in shown.items() if "image/svg+xml" in data} == {"curve"}  # so many points are too much
    data, metadata = shown["curve"]
    assert data["image/svg+xml"].startswith("<?xml") and metadata["image/svg+xml"] == metadata["image/png"]


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_save_is_whole_and_repeatable(tmp_path, suffix, start):
    make = lambda: plots.curve([8, 16], [2.0, 1.0], [0.1, 0.1], xlabel="d", ylabel="MSE", references={"PCA": 1.5}, xscale="log")
    written = [figures.save(make(), tmp_path / f"{i}.{suffix}").read_bytes() for i in range(2)]
    assert written[0] == written[1] and written[0].startswith(start)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"0.{suffix}", f"1.{suffix}"]


ROWS = [{"fit": "main", "step": s, "train/total": 100.0 / s, "train/lr": 0.1} for s in range(1, 21)]
VALID = [{"fit": "main", "step": 10, "valid/total": 11.0}, {"fit": "main", "step": 20, "valid/total": 6.0}]


def test_loss_curves_read_what_fit_writes(tmp_path):
    lines = [json.dumps(r) for r in ROWS + VALID]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, lines[0][:20]]))  # a crash cut the last line
    history = SimpleNamespace(rows=ROWS + VALID)
    for source in (ROWS + VALID, history, tmp_path / "metrics.jsonl", tmp_path, str(tmp_path)):
        (ax,) = plots.loss_curves(source).axes  # lr is no loss
        raw, smoothed, valid = ax.lines
        assert np.array_equal(raw.get_xydata(), [(r["step"], r["train/total"]) for r in ROWS])
        assert np.allclose(smoothed.get_ydata(), plots.smooth([r["train/total"] for r in ROWS]))
        assert np.array_equal(valid.get_xydata(), [(10, 11), (20, 6)])
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step", "total (nats)")
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0][:20], *lines]))
    with pytest.raises(GenbookError, match="line 1 of .*metrics.jsonl is not JSON"):
        plots.loss_curves(tmp_path)


def test_loss_curves_of_runs_and_fits_share_axes():
    two_fits = ROWS + [r | {"fit": "finetune"} for r in ROWS]
    fig = plots.loss_curves({"a": ROWS, "b": two_fits}, unit={"total": "nats"})
    assert len(fig.axes) == 1 and len(fig.axes[0].lines) == 9
    assert {t.get_text() for t in fig.legends[0].get_texts()} == {"a", "b main", "b finetune", "train", "valid"}
    assert plots.loss_curves(ROWS, ["lr"], unit="").axes[0].get_ylabel() == "lr"


def test_scatter_says_which_class():
    z, y = torch.randn(90, 5), torch.arange(90) % 3
    ax = plots.latent_scatter(z, y, ["T-shirt", "bag", "boot"]).axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["T-shirt", "bag", "boot"]
    assert {t.get_text() for t in ax.texts} == {"T-shirt", "bag", "boot"}  # by name too, not by colour alone
    assert "of variance" in ax.get_xlabel()
    first = plots.latent_scatter(z, method="first").axes[0]
    assert np.allclose(first.collections[0].get_offsets(), z[:, :2]) and first.get_xlabel() == "z[0]"
    assert len(plots.latent_scatter(z, torch.arange(90)).axes) == 2  # many classes: a colour bar


def test_kl_bars_are_sorted_on_one_scale():
    axes = plots.kl_bars({"a": torch.tensor([0.1, 2.0, 0.5]), "b": torch.tensor([9.0, 0.0])}).axes
    assert [round(p.get_height(), 3) for p in axes[0].patches] == [2.0, 0.5, 0.1]
    assert axes[0].get_ylim() == axes[1].get_ylim() and axes[0].get_ylim()[1] >= 9


def test_densities_share_their_scale():
    wide, narrow = (torch.distributions.MultivariateNormal(torch.zeros(2), s * torch.eye(2)) for s in (1.0, 0.1))
    a, b = (ax.images[0] for ax in plots.density_field({"wide": wide.log_prob, "narrow": narrow.log_prob}).axes[:2])
    assert a.get_clim() == b.get_clim() == (0, pytest.approx(1 / (2 * np.pi * 0.1), rel=0.02))
    for image in (a, b):
        assert image.get_array().sum() * (8 / 150) ** 2 == pytest.approx(1, abs=1e-3)
    shifted = torch.distributions.MultivariateNormal(torch.tensor([2.0, -1.0]), 0.1 * torch.eye(2))
    image = plots.density_field(shifted.log_prob).axes[0].images[0]
    row, column = np.unravel_index(image.get_array().argmax(), (150, 150))
    assert (column + 0.5) * 8 / 150 - 4 == pytest.approx(2, abs=0.06) and (row + 0.5) * 8 / 150 - 4 == pytest.approx(-1, abs=0.06)
    assert image.origin == "lower"


def test_traversal_moves_one_dimension_at_a_time():
    z = torch.tensor([0.1, 0.2, 0.3, 0.4])
    seen = []
    explorers.traversal_grid(lambda c: seen.append(c.clone()) or c.sigmoid().view(-1, 1, 2, 2), z, dims=[2, 0], values=[-1, 1])
    expected = torch.tensor([[0.1, 0.2, -1, 0.4], [0.1, 0.2, 1, 0.4], [-1, 0.2, 0.3, 0.4], [1, 0.2, 0.3, 0.4]])
    assert torch.equal(seen[0], expected) and torch.equal(z, torch.tensor([0.1, 0.2, 0.3, 0.4]))


class Conditional:
    "Decodes to the class over ten; samples noise around it."

    def decode(self, z, y):
        return ((y.view(-1, 1, 1, 1) + 1) / 10 + 0 * z.view(-1, 1, 2, 2)).clamp(0, 1)

    def sample(self, n, y=None, *, temperature=1.0, generator=None):
        return (0.5 + 0.1 * temperature * torch.randn(n, 1, 4, 4, generator=generator)).clamp(0, 1)


def test_explorers_say_what_they_explore():
    decode = lambda z: torch.sigmoid(z.view(-1, 1, 2, 2))
    made = {
        "latent": explorers.latent_explorer(decode, torch.zeros(4)),
        "interpolator": explorers.interpolator(decode, torch.randn(3, 4), torch.randn(3, 4)),
        "sampler": explorers.sample_explorer(Conditional(), 4, classes=["a", "b"], seeds=3),
    }
    assert {n: [c["label"] for c in e.about["controls"]] for n, e in made.items()} == {
        "latent": ["z[0]", "z[1]"],
        "interpolator": ["t", "path", "pair"],
        "sampler": ["temperature", "seed", "class"],
    }
    ends = made["interpolator"].about  # t, path, pair; the last changes fastest
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(ends["sprite"])))).reshape(33, 2, 3, 2, 2)
    assert (image[0, 0] == image[0, 1]).all() and (image[-1, 0] == image[-1, 1]).all() and (image[16, 0] != image[16, 1]).any()
    with pytest.raises(GenbookError, match="names: 1 for 2 codes"):
        explorers.latent_explorer(decode, torch.zeros(2, 4), names=["a"])


def ask_like_a_front_end(manager, code):
    "What a cell displays when the request names the cell, as that of JupyterLab does."
    client = BlockingKernelClient()
    client.load_connection_info(manager.get_connection_info())
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        request = client.session.msg("execute_request", content, metadata={"cellId": "a-cell"})
        client.shell_channel.send(request)
        while True:
            message = client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                assert message["msg_type"] != "error", message["content"]
                if message["msg_type"] == "execute_result":
                    return message["content"]["data"]
    finally:
        client.stop_channels()


def test_explorer_is_a_figure_for_a_program_and_a_page_for_a_front_end():
    sources = [
        "import sys\nimport torch\nfrom genbook.lab.explorers import latent_explorer\n{'ipywidgets', 'sklearn'} & set(sys.modules)",
        "explorer = latent_explorer(lambda z: z.sigmoid().view(-1, 1, 2, 2), torch.zeros(4))\nexplorer",
        "%matplotlib inline\nfrom genbook.lab import figures\nfig, ax = figures.subplots()\nfig",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client = NotebookClient(nb, timeout=120, kernel_name="python3")
    with client.setup_kernel():
        for i, cell in enumerate(nb.cells):
            client.execute_cell(cell, i)
        live = ask_like_a_front_end(client.km, "explorer")
    assert nb.cells[0].outputs[0].data["text/plain"] == "set()"
    (output,) = nb.cells[1].outputs
    assert set(output.data) == {"image/png", "text/plain", explorers.MIME}
    page, _ = HTMLExporter().from_notebook_node(nb)
    assert "data:image/png;base64," + output.data["image/png"].replace("\n", "")[:60] in page.replace("\n", "")
    assert set(live) == {*output.data, "text/html"} and 'class="gb-explorer"' in live["text/html"]
    assert live["text/plain"] == "Explorer(The latent space)"
    png = nb.cells[2].outputs[0].data["image/png"]  # as it is drawn once: matplotlib's own for notebooks is twice as large
    assert Image.open(io.BytesIO(base64.b64decode(png))).size == (540, 336)


def test_labels_of_a_short_logarithmic_axis_do_not_lie_on_each_other():
    fig, axes = figures.subplots(1, 3)
    axes[0].set(xscale="log", xlim=(1.8, 45))
    with matplotlib.rc_context(figures.STYLE):  # as it is saved
        found = texts(fig)
    left, below = axes[1].get_window_extent().x0, axes[0].get_window_extent().y0
    boxes = sorted((b.x0, b.x1, text) for text, b in found.items() if b.y1 < below and b.x1 < left)
    assert {text for *_, text in boxes} >= {r"$\mathdefault{2}$", r"$\mathdefault{10}$", r"$\mathdefault{20}$"}
    assert all(a[1] <= b[0] for a, b in zip(boxes, boxes[1:], strict=False)), boxes
