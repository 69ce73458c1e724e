"""The network's shapes, and that it hears what it must."""

import pytest
import torch

from ml.birds.model import BirdNetwork, ModelConfig, binary_cross_entropy

SMALL = ModelConfig(window_s=1.0, mels=32, channels=4)


@pytest.mark.parametrize("frontend", ["logmel", "pcen"])
@pytest.mark.parametrize("samples", [8_000, 16_000, 20_011])
def test_shapes_and_range(frontend: str, samples: int) -> None:
    torch.manual_seed(0)
    network = BirdNetwork(ModelConfig(mels=32, channels=4, frontend=frontend), labels=5).eval()
    clip, frames = network(torch.randn(3, samples) * 0.1)
    pictured = samples // 256 + 1
    assert network.picture(torch.randn(3, samples)).shape == (3, pictured, 32)
    assert clip.shape == (3, 5)
    assert frames.shape == (3, pictured // 2 // 2 // 2, 5)
    assert frames.shape[1] * network.frame_s == pytest.approx(samples / 16_000, abs=0.15)
    assert ((clip > 0) & (clip < 1)).all()


def test_a_clip_lies_between_its_frames() -> None:
    torch.manual_seed(1)
    clip, frames = BirdNetwork(SMALL, 3).eval()(torch.randn(4, 16_000))
    assert (clip <= frames.amax(dim=1) + 1e-6).all() and (clip >= frames.amin(dim=1) - 1e-6).all()


def test_loudness_does_not_change_the_answer() -> None:
    torch.manual_seed(2)
    network, wave = BirdNetwork(SMALL, 3).eval(), torch.randn(2, 16_000) * 0.3
    torch.testing.assert_close(network(wave)[0], network(wave * 0.1)[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("wave", [torch.zeros(1, 16_000), torch.ones(1, 16_000), torch.sign(torch.randn(1, 16_000))])
def test_silence_a_constant_and_a_clipped_wave_give_numbers(wave: torch.Tensor) -> None:
    torch.manual_seed(3)
    network = BirdNetwork(SMALL, 3)
    clip, _ = network(wave.expand(2, -1))
    binary_cross_entropy(clip, torch.ones(2, 3)).backward()
    assert torch.isfinite(clip).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_augmentation_is_fixed_by_its_seed() -> None:
    torch.manual_seed(4)
    network, wave = BirdNetwork(SMALL, 3).eval(), torch.randn(4, 16_000)
    first, second, other = (network(wave, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first, network(wave)[0])


def test_loss_is_the_cross_entropy_and_survives_certainty() -> None:
    probability, target = torch.tensor([[0.8, 0.3]]), torch.tensor([[1.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy(probability, target)
    torch.testing.assert_close(binary_cross_entropy(probability, target), expected)
    assert binary_cross_entropy(torch.tensor([[0.0, 1.0]]), target).isfinite()


def test_an_unknown_frontend_is_refused() -> None:
    with pytest.raises(ValueError, match="logmel or pcen"):
        BirdNetwork(ModelConfig(frontend="wavelet"), 3)
