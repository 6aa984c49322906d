"""The experiment with flows and the gallery, on small sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import flows, gallery
from revgraph import specs

PAGE = Path(gallery.PAGE).read_text()


def test_data_are_the_same_for_a_seed() -> None:
    for data in (flows.moons_data, flows.digits_data):
        for one, two in zip(data(3), data(3), strict=True):
            assert torch.equal(one, two)


def test_pixels_come_back_from_logits() -> None:
    levels, _ = flows.digits_data(0)
    shown = flows.pixels(flows.logits(levels))
    torch.testing.assert_close(shown, (levels + 0.5) / flows.LEVELS, rtol=0, atol=0.5 / flows.LEVELS + 1e-5)


def test_uniform_noise_costs_as_many_bits_as_it_has_levels() -> None:
    """A model that knew the images to be uniform would need log2(17) bits a pixel."""
    uniform = torch.rand(50, 1, 8, 8)
    squeezed = flows.MARGIN + (1 - 2 * flows.MARGIN) * uniform
    logits = squeezed.log() - (1 - squeezed).log()
    log_density = ((squeezed * (1 - squeezed)).log() - torch.tensor(1 - 2 * flows.MARGIN).log()).flatten(1)
    bits = flows.bits_per_pixel(log_density.sum(1).mean().item(), logits)
    assert bits == pytest.approx(torch.tensor(17.0).log2().item(), abs=1e-4)


@pytest.mark.slow
def test_learning_lowers_the_loss_and_undoes_itself() -> None:
    learned = flows.learn("realnvp", flows.moons_data(0), 40, flows.nats(2), blocks=2, hidden=16)
    assert learned.after < learned.before
    assert learned.undone < 1e-4
    assert learned.samples.shape == (1000, 2)


@pytest.mark.slow
def test_inverted_bytes_do_not_grow_and_ordinary_ones_do() -> None:
    small, large = flows.bytes_at(2), flows.bytes_at(6)
    assert small["inverted"] == large["inverted"]
    assert large["ordinary"] > 2 * small["ordinary"]


def test_the_gallery_shows_every_shipped_network_with_its_parameters() -> None:
    assert sorted(re.findall(r"^### (\S+)$", PAGE, re.MULTILINE)) == sorted(specs.shipped())
    for name in specs.shipped():
        with torch.device("meta"):
            module = specs.build(name).module
        count = sum(each.numel() for each in module.parameters() if each.requires_grad)
        assert f"| [{name}](#{name}) | {count:,} |" in PAGE
        assert (gallery.PICTURES / f"{name}.svg").stat().st_size > 1000


def test_a_network_is_shown_with_what_its_plans_predict(tmp_path: Path) -> None:
    figures = gallery.shown("realnvp", tmp_path)
    assert figures["least_bytes"] <= figures["inverted_bytes"] < figures["stored_bytes"]
    assert figures["couplings"] == 13
    assert (tmp_path / "realnvp.svg").read_text().startswith("<svg")
    text = gallery.page({"realnvp": figures})
    assert "### realnvp" in text
    assert "revgraph/models/realnvp.yaml" in text
