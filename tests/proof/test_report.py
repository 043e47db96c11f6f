import base64
import json
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from kdzoo.metrics import figures
from kdzoo.proof import report

RESULT = {
    "method": "kd",
    "seed": 0,
    "steps": 1560,
    "metrics": {"test/accuracy": 84.2, "test/nll": 0.5},
    "teacher": {
        "source": "recipe <script>alert(1)</script>",
        "hash": "3f2a91c0",
        "parameters": 297000,
        "scores": {"test/accuracy": 89.4},
    },
    "train_seconds": 12.3,
    "cpu_seconds": 24.1,
    "peak_mb": 120.0,
    "trainable_params": 14500,
    "versions": {"kdzoo": "0.1.0"},
}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "config.yaml").write_text("# see https://example.org\nmodel: {class_path: kd, note: '<b>&'}\n")
    rows = ["epoch,step,name,value"]
    for step in range(0, 100, 10):
        rows += [f"0,{step},train/ce,{1 / (step + 1)}", f"0,{step},train/kd,2", f"0,{step},val/accuracy,{step}"]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, "0,99,test/accuracy,84", ""]))
    return tmp_path


def svgs(page):
    return [base64.b64decode(found).decode() for found in re.findall(r"svg\+xml;base64,([\w+/=]+)", page)]


def test_report(run_dir):
    figure = Figure()
    figure.subplots().plot([1, 2])
    path = report.write_report(run_dir, RESULT, {"A <title> & more": figure})
    page = path.read_text("utf-8")
    assert path == run_dir / "report.html"
    assert [file.name for file in run_dir.iterdir() if file.name.startswith("report")] == ["report.html"]
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Result", "Training loss", "Validation", "A &lt;title&gt; &amp; more", "How it was made"]
    assert "&lt;script&gt;" in page
    assert "note: &#x27;&lt;b&gt;&amp;&#x27;" in page
    assert "<script" not in page
    assert '<td>test/accuracy</td><td class="student">84.20</td><td>89.40</td>' in page
    assert '<td>parameters</td><td class="student">14.5k</td><td>297k</td>' in page
    assert "prefers-color-scheme: dark" in page
    # nothing is loaded from anywhere
    assert set(re.findall(r'(?:src|href)="(\w+:)', page)) == {"data:"}
    assert not re.search(r"@import|url\(", page)
    for svg in svgs(page):
        assert not re.search(r'href="(?!#|data:)', svg)
        assert "<script" not in svg


def test_ink_follows_the_page(run_dir):
    page = report.write_report(run_dir, RESULT, {"Confusion": figures.confusion_figure(np.eye(3), "abc")}).read_text(
        "utf-8"
    )
    for svg in svgs(page):
        assert report.INK not in svg
        assert "currentColor" in svg
        assert "prefers-color-scheme:dark" in svg


def test_report_of_a_run_without_teacher_or_curves(run_dir):
    (run_dir / "metrics.csv").unlink()
    (run_dir / "config.yaml").unlink()
    page = report.write_report(run_dir, {**RESULT, "teacher": None}, {}).read_text("utf-8")
    assert "<h2>Training loss" not in page
    assert "<details>" not in page
    assert "teacher" not in page


def test_curves(run_dir):
    drawn = report.curves(run_dir / "metrics.csv")
    assert list(drawn) == ["Training loss", "Validation"]
    (axes,) = drawn["Training loss"].axes
    assert [line.get_label() for line in axes.lines] == ["ce", "kd"]
    assert list(axes.lines[0].get_xdata()) == list(range(0, 100, 10))


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_confusion_of_few_classes_is_a_matrix():
    (axes,) = figures.confusion_figure([[8, 2, 0], [0, 0, 0], [1, 0, 3]], ["$a_", "b", "ネコ"]).axes
    assert [text.get_text() for text in axes.texts] == ["80", "20", "25", "75"]
    assert labels(axes) == ["$a_", "b", "ネコ"]


def test_confusion_of_many_classes_is_its_worst_pairs():
    matrix = 30 * np.eye(1000)
    matrix[7, 11], matrix[500, 2] = 5, 9
    names = [f"class {i}" for i in range(1000)]
    (axes,) = figures.confusion_figure(matrix, names).axes
    assert labels(axes) == ["class 500 → class 2", "class 7 → class 11"]
    assert [bar.get_width() for bar in axes.patches] == [9, 5]
    (axes,) = figures.confusion_figure(np.eye(30), names[:30]).axes
    assert "no image" in axes.get_xlabel()
    assert len(figures.confusion_figure(np.ones((50, 50)), names[:50]).axes[0].patches) == 20


def test_reliability():
    confidence, correct = [0.5, 0.52, 0.95, 1.0], [True, False, True, True]
    top, bottom = figures.reliability_figure(confidence, correct, 3.21).axes
    heights = [bar.get_height() for bar in top.patches]
    assert heights[7] == 0.5
    assert heights[14] == 1.0
    assert sum(bar.get_height() for bar in bottom.patches) == pytest.approx(1)
    assert "3.21 %" in top.get_title()


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions(channels):
    images = np.random.default_rng(0).random((30, channels, 8, 8))
    true, predicted = [0, 1, -1] * 10, [0, 0, 1] * 10
    figure = figures.predictions_figure(
        images, true, predicted, [0.9] * 30, ["$cat", "an animal with a very long name"]
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 24
    assert titles[0].strip() == "✓ $cat 90 %"
    assert titles[1] == "✗ $cat 90 %\nis an animal…ong name"
    assert titles[2].strip() == "an animal…ong name 90 %"
    assert report.embed(figure).startswith("data:image/svg+xml;base64,")


def test_names_that_matplotlib_cannot_draw(run_dir):
    figure = figures.confusion_figure(np.eye(2), ["$x^{", "ネコ"])
    assert report.write_report(run_dir, RESULT, {"Confusion": figure}).exists()


def test_pyplot_is_left_alone(run_dir):
    before = dict(matplotlib.rcParams)
    report.write_report(run_dir, RESULT, {"c": figures.confusion_figure(np.eye(2), "ab")})
    assert dict(matplotlib.rcParams) == before
