"""The two-view report says what was measured, in one file, leaves out what was not, and nothing in it overlaps."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import combinations, product

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.figure import whole, wrapped
from trainer.evaluate.report.html import VIEWS, write_report
from trainer.evaluate.report.layout import HEADING, MARGIN, Shape, page
from trainer.evaluate.report.panels import denoising_curve, panels
from trainer.evaluate.report.plots import round_steps
from trainer.evaluate.report.theme import DARK, DARK_PAPER, DRAWING, LIGHT, PAPER
from trainer.evaluate.report.wording import ERRORS, measured, short
from trainer.run.summary import evaluated_from_json

CURVE = DenoisingCurve(
    log_snr=torch.linspace(10, -10, 12, dtype=torch.float64),
    mse=torch.linspace(40, 1, 12, dtype=torch.float64).repeat(3, 1) * torch.tensor([[0.9], [1.0], [1.1]]),
    x0_mse=torch.ones(3, 12, dtype=torch.float64),
    second_moment=20.0,
    reconstruction=torch.linspace(30, 300, 12, dtype=torch.float64),
    dimensions=64,
    package_sha256="a" * 64,
    dataset_fingerprint="d" * 64,
    images=48,
)
FULL = {
    "model": "<b>mine</b>",
    "package_sha256": "a" * 64,
    "dataset_fingerprint": "d" * 64,
    "evaluation": {"metrics": ["vlb", "nll", "denoising", "frechet"], "solver": {"kind": "ddim"}},
    **{f"vlb_{term}bpd": value for term, value in (("", 4.5), ("prior_", 0.1), ("diffusion_", 3.0))},
    "vlb_reconstruction_bpd": 1.4,
    "vlb_bpd_se": 0.02,
    "nll_bpd": 4.7,
    "nll_bpd_se": 0.03,
    "samples": 500,
    "extractors": {"classifier": {"sha256": "c" * 64}},
    "frechet_classifier": 5.0,
    "frechet_classifier_se": 0.4,
    "frechet_classifier_infinite": -0.1,
    "frechet_classifier_infinite_se": 0.5,
    "frechet_classifier_gaussian": 60.0,
    "frechet_classifier_noise": 600.0,
    "frechet_at_nfe": {"frechet_classifier": [{"nfe": 5, "value": 9.0, "se": 1.0}, {"nfe": 20, "value": 5.0}]},
    "classes": {"samples": [3, 2], "train": [5, 5], "heldout": [2, 2]},
    "notes": ["no memorisation check: most held-out images are training images too"],
}


def shown(values, folder):
    """The panels of an evaluation's file."""
    return panels(evaluated_from_json(values), denoising_curve(values["evaluation"]["metrics"], folder), folder)


EXTREMES = {
    "as usual": {},
    "a name of one long word, with a dollar sign": {"model": "$" + "name_" * 30 + "$", "step": 4_000_000},
    "zero and below": {
        "frechet_classifier": -0.2,
        "frechet_classifier_infinite": 0.0,
        "frechet_at_nfe": {"frechet_classifier": [{"nfe": 5, "value": -0.4, "se": 0.1}, {"nfe": 9, "value": 0.0}]},
        "nll_bpd": -0.7,
    },
    "huge": {
        "frechet_classifier": 3.4e9,
        "frechet_classifier_se": 1e8,
        "frechet_classifier_gaussian": 1e-6,
        "frechet_at_nfe": {"frechet_classifier": [{"nfe": 5, "value": 3.4e9, "se": 1e9}]},
        "vlb_bpd": 3.1e5,
        "vlb_diffusion_bpd": 3.1e5,
    },
    "many evaluations": {
        "frechet_at_nfe": {"frechet_classifier": [{"nfe": n, "value": 9 / n} for n in range(1, 2000, 40)]}
    },
    "errors that are tiny or missing": {"vlb_bpd_se": 1e-9, "nll_bpd_se": None, "frechet_classifier_se": 0.0},
    "nothing finite": {"frechet_classifier": math.nan, "frechet_classifier_noise": math.inf, "nll_bpd": math.inf},
    "two classes": {"classes": {"samples": [0, 9], "train": [5, 4], "heldout": [5, 4]}},
    "200 classes with a long tail": {
        "classes": {
            "samples": [7] + [0] * 199,
            "train": [10_000 // (n + 1) ** 2 for n in range(200)],
            "heldout": [10_000 // (n + 1) ** 2 for n in range(200)],
        }
    },
    "30 classes": {"classes": {"samples": list(range(30)), "train": [5] * 30, "heldout": [5] * 30}},
    "no samples that a classifier saw": {"classes": {"samples": [0] * 3, "train": [5] * 3, "heldout": [5] * 3}},
    "the worst of words": {
        "frechet_efficientnet_lite0": 1.0,
        "frechet_efficientnet_lite0_noise": 2.0,
        "frechet_at_nfe": {"frechet_efficientnet_lite0": [{"nfe": 1000, "value": 123456.7, "se": 9.0}]},
        "frechet_classifier_noise": 123456.7,
        "frechet_classifier_se": 9.123,
        "evaluation": {"metrics": ["denoising"], "solver": {"kind": "dpmpp_2m_sde"}, "seeds": 3},
    },
}


def save_pictures(folder, names=("samples.png", "neighbours.png")):
    for name, size in {"samples.png": (566, 566), "neighbours.png": (846, 146)}.items():
        if name in names:
            Image.fromarray(np.zeros(size[::-1], np.uint8)).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "denoising.json").write_text(CURVE.to_json())
    save_pictures(tmp_path)
    return tmp_path


def test_a_full_evaluation_shows_both_views_in_one_file(folder):
    likelihood, sample = shown(FULL, folder)
    assert (len(likelihood), len(sample)) == (2, 5)
    text = write_report(folder, FULL).read_text()
    assert text.count("<svg ") == 5
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"https?:|src=\"(?!data:)", text)
    assert "&lt;b&gt;mine&lt;/b&gt;" in text
    assert "<tr><th scope=row>vlb_bpd</th><td>4.5</td><td>± 0.02</td></tr>" in text
    assert "<th scope=row>Variational bound, discrete time</th><td>4.500 ± 0.020</td>" in text
    assert "<td>5.00 ± 0.40</td><td>−0.10 ± 0.50</td><td>–</td><td>60</td><td>600</td>" in text
    assert "Note: no memorisation check" in text
    assert text.count("<tr><th scope=row>") == 2 + 1 + 9 + 2 + 2 + 12  # headlines, numbers, evaluations, classes, curve
    with Image.open(folder / "report.png") as picture:
        assert picture.size[0] > 1000


def test_only_what_was_measured_is_shown(tmp_path):
    values = {name: FULL[name] for name in ("model", "package_sha256", "dataset_fingerprint", "nll_bpd", "nll_bpd_se")}
    values["evaluation"] = {"metrics": ["nll"], "solver": {"kind": "ddim"}}
    likelihood, sample = shown(values, tmp_path)
    assert (len(likelihood), len(sample)) == (1, 0)
    assert "Not measured." in write_report(tmp_path, values).read_text()


def test_a_report_of_nothing_is_a_page_all_the_same(tmp_path):
    values = {name: FULL[name] for name in ("model", "package_sha256", "dataset_fingerprint", "evaluation")}
    assert write_report(tmp_path, values).read_text().count("Not measured.") == 2


def test_a_curve_that_another_evaluation_left_is_not_shown(folder):
    values = {**FULL, "evaluation": {"metrics": ["vlb"], "solver": {"kind": "ddim"}}}
    assert len(shown(values, folder)[0]) == 1
    assert "Error per dimension" not in write_report(folder, values).read_text()


def test_the_report_is_the_same_each_time(folder):
    def written():
        text = write_report(folder, json.loads(json.dumps(FULL))).read_bytes()
        return text, (folder / "report.png").read_bytes()

    assert written() == written()


class Reader(HTMLParser):
    """Collects what tags have."""

    def __init__(self):
        super().__init__()
        self.ids, self.references, self.pictures, self.heads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.references += re.findall(r"url\(#([^)]+)\)", " ".join(str(value) for value in found.values()))
        self.references += [str(found["href"])[1:]] if "href" in found else []
        if tag in ("svg", "img"):
            self.pictures.append(found.get("alt") or found.get("aria-label"))
        if tag == "th":
            self.heads.append(found.get("scope"))


def test_every_picture_is_told_in_words_and_every_head_of_a_table_says_of_what(folder):
    reader = Reader()
    reader.feed(write_report(folder, FULL).read_text())
    assert len(reader.pictures) == 7
    assert all(reader.pictures)
    assert any("9.0 ± 1.0 at 5, 5 at 20" in text for text in reader.pictures)
    assert set(reader.heads) == {"row", "col"}
    assert len(set(reader.ids)) == len(reader.ids)
    assert set(reader.references) <= set(reader.ids)


def test_text_of_the_data_cannot_become_markup(folder):
    bad = '"><script>'
    values = {
        **FULL,
        f"frechet_{bad}": 1.0,
        f"frechet_{bad}_noise": 2.0,
        "frechet_at_nfe": {f"frechet_{bad}": [{"nfe": 5, "value": 9.0}]},
        "package_sha256": bad,
        "dataset_fingerprint": bad,
        "notes": [bad],
        "evaluation": {"metrics": [bad], "solver": {"kind": bad}},
    }
    assert "<script" not in write_report(folder, values).read_text()


def test_drawings_have_no_colour_but_the_page_s(folder):
    text = write_report(folder, FULL).read_text()
    drawings = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert not re.search(r"(?<!href=\")#[0-9a-f]{6}\b", "".join(drawings))
    assert set(re.findall(r"var\(--(\w+)\)", "".join(drawings))) <= set(LIGHT)


def contrast(colour, paper):
    def luminance(text):
        parts = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colour), luminance(paper)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, PAPER), (DARK, DARK_PAPER)])
def test_letters_and_lines_stand_out_from_the_paper(colours, paper):
    assert len(set(colours.values())) == len(colours)
    assert all(contrast(colours[name], paper) >= 4.5 for name in ("ink", "quiet"))
    assert all(contrast(colours[name], paper) >= 3 for name in ("baseline", "likelihood", "sample"))


PLOT, LOW = Shape(), Shape(tall=1.7)


@pytest.mark.parametrize("likelihood", [[], [PLOT], [LOW], [Shape(tall=2.5)], [PLOT, LOW], [PLOT, Shape(tall=3.3)]])
def test_no_page_has_large_empty_areas_nor_panels_over_each_other(likelihood):
    for plots, *pictures in product(range(8), (None, 1.0), (None, 6.0)):
        sample = [PLOT] * plots + [Shape(aspect) for aspect in pictures if aspect]
        if not likelihood + sample:
            continue
        found = page([likelihood, sample])
        boxes = [box for view in found.boxes for box in view]
        tops = {heading.y for heading in found.headings if heading}
        body = (found.width - 2 * MARGIN) * (found.height - MARGIN - HEADING * len(tops))
        assert sum(box.width * box.height for box in boxes) / body > 0.84
        assert all(box.x >= MARGIN - 1e-9 and box.x + box.width <= found.width - MARGIN + 1e-9 for box in boxes)
        assert all(box.y >= HEADING and box.y + box.height <= found.height - MARGIN + 1e-9 for box in boxes)
        for one, other in combinations(boxes, 2):
            beside = one.x + one.width <= other.x or other.x + other.width <= one.x
            assert beside or one.y + one.height <= other.y or other.y + other.height <= one.y


def drawn(figure, monkeypatch):
    """The rectangle of every text that is drawn on a figure, with the text."""
    texts, draw = [], Text.draw

    def recorded(self, renderer):
        if self.get_visible() and self.get_text():
            texts.append(self)
        draw(self, renderer)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        figure.canvas.draw()
    return [(text.get_text(), Text.get_window_extent(text)) for text in texts]


def overlap(one, other, slack=1.0):
    """Whether two rectangles share more than a pixel."""
    shared = Bbox.intersection(one, other)
    return shared is not None and shared.width > slack and shared.height > slack


def page_of(values, folder):
    with rc_context(DRAWING):
        title = f"{values['model']}, step {values.get('step', 1)}"
        return whole(shown(values, folder), [name for _, name, _ in VIEWS], title, ERRORS)


@pytest.mark.parametrize(
    ("extreme", "shown"),
    [
        *((extreme, "everything") for extreme in EXTREMES),
        *(("as usual", shown) for shown in ("no curve", "no pictures", "one likelihood")),
    ],
)
def test_no_text_leaves_the_page_or_meets_other_text_or_bars(extreme, shown, folder, monkeypatch):
    values = {**FULL, **EXTREMES[extreme]}
    if shown == "no curve":
        (folder / "denoising.json").unlink()
    elif shown == "no pictures":
        (folder / "samples.png").unlink()
        (folder / "neighbours.png").unlink()
    elif shown == "one likelihood":
        values = {name: value for name, value in values.items() if not name.startswith("nll")}
    figure = page_of(values, folder)
    with rc_context(DRAWING):
        texts = drawn(figure, monkeypatch)
    assert len(texts) > 20
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    for (text, box), (other, other_box) in combinations(texts, 2):
        assert not overlap(box, other_box), (text, other)
    for axes in figure.axes:
        for bar in axes.patches:
            met = [text for text, box in texts if overlap(box, bar.get_window_extent())]
            assert not met, met


def test_long_text_is_broken_into_lines_that_fit():
    with rc_context(DRAWING):
        lines = wrapped("a few words and " + "x" * 200, 3.0, 10.0)
    assert "".join(lines).replace(" ", "").endswith("x" * 200)
    assert 8 <= len(lines) <= 12


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (4.4484, 0.023, "4.448 ± 0.023"),
        (-0.1, 0.5, "−0.10 ± 0.50"),
        (-0.001, 0.44, "0.00 ± 0.44"),
        (31611.4, 16384.0, "31611 ± 16384"),
        (4.7449, 1e-7, "4.74490 ± 1e-7"),
        (3.4e9, 2e8, "3.4e9 ± 2e8"),
        (-0.00022927, 0.000691, "−0.00023 ± 0.00069"),
        (2.80994, None, "2.81"),
        (0.0, 0.0, "0"),
        (1e-6, None, "1e-6"),
        (16865.2, None, "16865"),
        (12345678.9, None, "1.235e7"),
    ],
)
def test_numbers_have_the_digits_that_their_errors_allow(value, error, text):
    assert measured(value, error) == text


def test_an_axis_has_few_round_numbers():
    assert [short(step) for step in round_steps(0.8, 900)] == ["1", "10", "100"]
    assert round_steps(16.0, 17.0) == []
    assert len(round_steps(1e-9, 1e12)) <= 5
