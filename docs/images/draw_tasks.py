"""Draw the pictures of the pages in ``docs/tasks``.

Usage::

    python docs/images/draw_tasks.py page results/sub-01.html PICTURE 930
    python docs/images/draw_tasks.py graph work/graph.dot PICTURE conform enhance report_01
    python docs/images/draw_tasks.py function demo/bids/sub-mni/anat/sub-mni_T1w.nii.gz PICTURE

The first one needs Chromium and Playwright; it takes the top of a page, as high as the number says. The graph
is what ``--write-graph`` writes, or ``Workflow.write_graph``.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from shutil import which

from PIL import Image

#: Width of a page in pixels.
WIDTH = 1180
#: Colours of an indexed picture.
COLOURS = 128


def save(picture: bytes, path: Path) -> None:
    """Store a picture with few colours, so that it is small."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_page(page: str, picture: str, height: str) -> None:
    """Take a picture of the top of a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": WIDTH, "height": int(height)})
        window.goto(Path(page).absolute().as_uri())
        window.wait_for_timeout(500)
        save(window.screenshot(), Path(picture))
        browser.close()


def draw_graph(dot: str, picture: str, *marked: str) -> None:
    """Draw a graph of nipype (``graph.dot``), from left to right; the steps `marked` have another colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import networkx as nx

    text = Path(dot).read_text()
    names = dict(re.findall(r'(\w+)\[label="(\w+)', text))
    graph = nx.DiGraph(re.findall(r"(\w+) -> (\w+);", text))
    for step in [step for step in graph if names[step] in ("inputnode", "outputnode")]:
        graph.add_edges_from((a, b) for a in graph.pred[step] for b in graph.succ[step])
        graph.remove_node(step)
    layers = list(nx.topological_generations(graph))
    places = {
        step: (depth, (len(layer) - 1) / 2 - row)
        for depth, layer in enumerate(layers)
        for row, step in enumerate(sorted(layer))
    }
    figure, axes = plt.subplots(figsize=(9.5, 0.6 + 0.5 * max(map(len, layers))), facecolor="white")
    nx.draw_networkx_edges(graph, places, ax=axes, node_size=3200, edge_color="0.5")
    for step, (x, y) in places.items():
        box = {"boxstyle": "round", "fc": "#f9d9a8" if names[step] in marked else "#eef3f8", "ec": "0.5"}
        axes.text(x, y, names[step], ha="center", va="center", bbox=box)
    axes.margins(0.12, 0.2)
    axes.axis("off")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90, bbox_inches="tight")
    save(drawn.getvalue(), Path(picture))


def draw_function(scan: str, picture: str) -> None:
    """Enhance a scan (RAS, axial slices), and draw the scan, the enhanced volume and the predicted error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import nibabel as nib
    import numpy as np

    import iqtflow

    enhanced, std = iqtflow.enhance(scan, return_std=True)
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.9), facecolor="black")
    titles = ("scan", "enhanced", "std")
    for axis, title, image in zip(axes, titles, (nib.load(scan), enhanced, std), strict=True):
        data, (width, _, height) = image.get_fdata(dtype="f4"), image.header.get_zooms()
        top = float(np.percentile(data, 99.8))
        plane = data[:, data.shape[1] * 4 // 9].T
        axis.imshow(plane, origin="lower", cmap="gray", vmin=0, vmax=top, aspect=float(height / width))
        axis.set_title(f"{title}  {' x '.join(map(str, image.shape))}", color="white", fontsize=12)
        axis.axis("off")
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.92, wspace=0.02)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90, facecolor="black")
    save(drawn.getvalue(), Path(picture))


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    {"page": draw_page, "graph": draw_graph, "function": draw_function}[kind](*arguments)
