"""The mathematics of variational autoencoders and of first stages, against closed forms and references."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate
from genlab.evaluation.latents import Panels, slerp
from genlab.evaluation.metrics import FID, ImportanceWeightedNLL, LatentUsage, Reconstruction, VariationalNLL
from genlab.models.autoencoder import Autoencoder
from genlab.models.latent import LatentSampler
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan
from genlab.models.vae import VAE
from genlab.networks.bottlenecks import FSQ, KL, VectorQuantiser
from genlab.networks.first_stage import FirstStage, StridedStage
from genlab.networks.patch_critic import PatchCritic
from genlab.networks.vae import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from genlab.objectives import elbo
from genlab.objectives.adversarial import Hinge
from genlab.objectives.likelihoods import BIN, Bernoulli, DiscretisedLogistic, Gaussian

SHAPE = [1, 8, 8]


def batch(n: int, shape: list[int] = SHAPE) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.arange(n)
    return {"image": torch.rand(n, *shape) * 2 - 1, "id": ids, "position": ids, "label": ids % 3}


def vae(likelihood: Any = None, latent_dim: int = 3, num_classes: int | None = None, **options: Any) -> VAE:
    torch.manual_seed(0)
    likelihood = likelihood or Bernoulli()
    encoder = MLPEncoder(SHAPE, latent_dim, [16], num_classes)
    decoder = MLPDecoder(SHAPE, latent_dim, [16], likelihood.outputs, num_classes)
    return VAE(encoder, decoder, likelihood, latent_dim, SHAPE, num_classes=num_classes, **options)


# ---- likelihoods


def test_discretised_logistic_is_a_distribution_over_256_levels() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for scale in (0.001, 0.02, 0.7):
        likelihood = DiscretisedLogistic("fixed", scale)
        for location in (-1.3, 0.1, 0.999):
            output = torch.full((256, 1, 1, 1), location)
            assert likelihood.log_prob(output, levels.view(256, 1, 1, 1)).exp().sum().item() == pytest.approx(
                1, abs=2e-4
            )
    assert pytest.approx(2 / 255) == BIN


def test_gaussian_and_bernoulli_equal_torch_distributions() -> None:
    torch.manual_seed(0)
    x, output = torch.rand(4, 2, 3, 3) * 2 - 1, torch.randn(4, 4, 3, 3)
    location, extra = output.chunk(2, 1)
    wanted = torch.distributions.Normal(location, 0.5 * extra.exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Gaussian("pixel", 0.5).log_prob(output, x), wanted)
    wanted = torch.distributions.Normal(location, 0.5).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Gaussian("shared", 0.5).log_prob(location, x), wanted)
    likelihood = Bernoulli()
    seen = likelihood.observe(x, torch.arange(4))
    wanted = torch.distributions.Bernoulli(logits=location).log_prob((seen + 1) / 2).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(location, seen), wanted)


def test_dynamic_binarisation_is_keyed_and_has_the_grey_value_as_its_mean() -> None:
    x = torch.full((4000, 1, 2, 2), -0.4)
    keys = torch.arange(4000)
    seen = Bernoulli().observe(x, keys)
    assert set(seen.unique().tolist()) == {-1.0, 1.0}
    assert seen.mean().item() == pytest.approx(-0.4, abs=0.03)
    assert torch.equal(seen[10:20], Bernoulli().observe(x[10:20], keys[10:20]))
    black = torch.full((100, 1, 2, 2), -1.0)
    assert torch.equal(Bernoulli().observe(black, keys[:100]), black)


# ---- bounds


class LinearGaussian(nn.Module):
    """x = W z + b + sigma eps: its posterior and its likelihood are known."""

    def __init__(self, w: Tensor, b: Tensor, sigma: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)
        d = w.shape[1]
        self.covariance = torch.linalg.inv(torch.eye(d) + w.T @ w / sigma**2)
        self.gain = self.covariance @ w.T / sigma**2

    def encoder(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        mu = (x.flatten(1) - self.b) @ self.gain.T
        return torch.cat([mu, self.covariance.diagonal().log().expand_as(mu)], 1)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return (z @ self.w.T + self.b).view(-1, 1, 2, 2)


def linear(orthogonal: bool) -> tuple[VAE, Tensor, Tensor]:
    """The model, 50 of its own images, and their -log p(x). With orthogonal columns of W the posterior is diagonal."""
    torch.manual_seed(0)
    w, b, sigma = torch.randn(4, 2), torch.randn(4), 0.7
    if orthogonal:
        w = torch.linalg.qr(w).Q * torch.tensor([1.5, 0.8])
    parts = LinearGaussian(w, b, sigma)

    class Encoder(nn.Module):
        def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
            return parts.encoder(x) + (0.0 if orthogonal else 0.3)  # else too wide and beside the posterior

    model = VAE(Encoder(), parts, Gaussian("fixed", sigma), 2, [1, 2, 2])
    marginal = torch.distributions.MultivariateNormal(b, w @ w.T + sigma**2 * torch.eye(4))
    x = marginal.sample((50,))
    return model.eval(), x.view(50, 1, 2, 2), -marginal.log_prob(x)


def test_importance_nll_of_a_linear_gaussian_model_equals_its_closed_form() -> None:
    model, x, exact = linear(orthogonal=False)
    given = {"image": x, "id": torch.arange(50)}
    with torch.no_grad():
        nll = model.importance_nll(given, 6000, rows=25000)["nll"]
        few = model.importance_nll(given, 3)["nll"]
        bound = model.variational_bound(given)["neg_elbo"]
    torch.testing.assert_close(nll.float(), exact, atol=0.1, rtol=0)
    assert exact.mean() < few.mean() < bound.mean(), "tighter with more draws, never below in the mean"
    exact_posterior, x, exact = linear(orthogonal=True)
    with torch.no_grad():  # where q is the posterior, one draw is enough
        one = exact_posterior.importance_nll({"image": x, "id": torch.arange(50)}, 1)["nll"]
    torch.testing.assert_close(one.float(), exact, atol=1e-4, rtol=0)


def test_kl_and_total_correlation() -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 64, 3).unbind(0)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(elbo.gaussian_kl(mu, logvar), wanted)
    assert elbo.free_bits(wanted, 0.0) == pytest.approx(wanted.sum(1).mean().item(), rel=1e-5)
    assert elbo.free_bits(wanted * 0, 0.5) == pytest.approx(1.5)
    narrow = torch.full((512, 2), -4.0)
    alone = torch.randn(512, 2)  # independent dimensions; then one that repeats the other
    together = alone[:, :1].expand(-1, 2) + 0.01 * torch.randn(512, 2)
    low, high = (float(elbo.total_correlation(z, z, narrow)) for z in (alone, together))
    assert low < 0.6 < 1.5 < high


def test_weights_of_the_bound() -> None:
    given, model = batch(6), vae(beta=4.0)
    losses = model.eval().losses(given)
    torch.testing.assert_close(losses["loss"], losses["reconstruction"] + 4 * losses["kl"])
    torch.testing.assert_close(losses["neg_elbo"], losses["reconstruction"] + losses["kl"])
    model = vae(warmup=100)
    model.samples_seen = 25
    losses = model.train().losses(given)
    torch.testing.assert_close(losses["loss"], losses["reconstruction"] + 0.25 * losses["kl"])
    model = vae(tc_beta=3.0)
    losses = model.train().losses(given)
    wanted = losses["reconstruction"] + losses["kl"] + 2 * losses["total_correlation"]
    torch.testing.assert_close(losses["loss"], wanted)
    with pytest.raises(ConfigError, match="importance_samples=5"):
        vae(importance_samples=5, beta=2.0)


def test_importance_weighted_bound_is_tighter_and_keyed_by_item() -> None:
    given, one, many = batch(64), vae(), vae(importance_samples=20)
    assert many.eval().losses(given)["loss"] < one.eval().losses(given)["loss"]
    torch.testing.assert_close(many.losses(given)["neg_elbo"], one.losses(given)["loss"], atol=1.0, rtol=0)
    later = vae(importance_samples=20, importance_start=10)
    assert later.train().losses(given)["reconstruction"].ndim == 0, "one draw at first"
    later.samples_seen = 10
    assert "reconstruction" not in later.losses(given)
    half = {key: value[32:] for key, value in given.items()}
    whole = one.variational_bound(given)["neg_elbo"]
    torch.testing.assert_close(whole[32:], one.variational_bound(half)["neg_elbo"])


@pytest.mark.parametrize("conditional", [False, True])
def test_networks_of_images(conditional: bool) -> None:
    classes = 3 if conditional else None
    given = batch(3, [3, 8, 12])
    labels = given["label"] if conditional else None
    out = ConvEncoder([3, 8, 12], 5, 4, classes)(given["image"], labels)
    assert out.shape == (3, 10)
    assert ConvDecoder([3, 8, 12], 5, 4, 2, classes)(out[:, :5], labels).shape == (3, 6, 8, 12)


# ---- first stages


def test_first_stage_equals_diffusers_autoencoders() -> None:
    torch.manual_seed(0)
    given = batch(2, [3, 16, 16])
    for bottleneck, double in ((KL([3, 16, 16]), True), (VectorQuantiser(16, 4), False)):
        model = Autoencoder(FirstStage([3, 16, 16], 4, [8, 16], double=double), bottleneck).eval()
        theirs = model.to_diffusers()
        with torch.no_grad():
            torch.testing.assert_close(theirs(given["image"]).sample, model.reconstruct(given)[1])
    with pytest.raises(ConfigError, match="FSQ"):
        Autoencoder(FirstStage([3, 16, 16], 2, [8, 16]), FSQ([5, 5])).to_diffusers()
    with pytest.raises(ConfigError, match="do not divide by 4"):
        FirstStage([3, 18, 18], 4, [8, 8, 8])


def test_finite_scalar_quantisation_has_all_its_codes_and_a_straight_through_gradient() -> None:
    fsq = FSQ([8, 5])
    h = torch.randn(64, 2, 8, 8, requires_grad=True)
    z, report = fsq(1.5 * h, torch.arange(64))
    assert len(z.detach().movedim(1, -1).flatten(0, 2).unique(dim=0)) == 40
    assert z.abs().max() <= 1
    assert 20 < float(report["perplexity"]) <= 40
    z.sum().backward()
    assert h.grad is not None
    assert h.grad.abs().sum() > 0
    drawn = fsq.draw(torch.arange(500), (2, 4, 4))
    assert {tuple(row) for row in drawn.movedim(1, -1).flatten(0, 2).tolist()} <= {
        tuple(row) for row in z.detach().movedim(1, -1).flatten(0, 2).unique(dim=0).tolist()
    }


def test_codebook_follows_the_encoder_the_same_in_any_micro_batches() -> None:
    torch.manual_seed(0)
    h, keys = torch.randn(12, 3, 4, 4), torch.arange(12)
    made = []
    for parts in ([slice(0, 12)], [slice(8, 12), slice(0, 5), slice(5, 8)]):
        torch.manual_seed(1)
        quantiser = VectorQuantiser(6, 3)
        for _ in range(3):
            for part in parts:
                quantiser(h[part], keys[part])
            quantiser.moved(True)
        made.append(quantiser)
    torch.testing.assert_close(made[0].codebook, made[1].codebook)
    z, report = made[0].eval()(h, keys)
    error = (z - h).square().sum(1).mean()
    assert error < h.square().sum(1).mean() * 0.6, "six vectors from the data are closer than none"
    assert 3 < float(report["perplexity"]) <= 6
    before = made[0].codebook.clone()
    made[0].train()(h + 100, keys)
    made[0].moved(False)
    assert torch.equal(made[0].codebook, before), "a step that was left out moves nothing"


def test_codes_that_are_not_used_begin_anew_from_the_data() -> None:
    quantiser = VectorQuantiser(8, 2, decay=0.5)
    near, keys = torch.randn(16, 2, 2, 2) * 0.1, torch.arange(16)
    quantiser(near, keys)
    quantiser.moved(True)
    for _ in range(12):
        quantiser(near + 50, keys)
        quantiser.moved(True)
    assert (quantiser.codebook > 40).all()


def test_adaptive_weight_balances_the_gradients_at_the_last_weight() -> None:
    torch.manual_seed(0)
    network, critic = StridedStage([1, 8, 8], 4, 8, 1, double=True), PatchCritic(1, 8, 1)
    model = Autoencoder(network, KL([1, 8, 8], 0.0), critic=critic, objective=Hinge(), adversarial_weight=1.0)
    model.plan = Plan(lambda groups: torch.optim.SGD(groups, lr=0.1), Schedule(max_samples=8), 4)
    losses = model.losses(batch(4), "autoencoder")
    game, rest = (
        torch.autograd.grad(loss, network.last, retain_graph=True)[0].norm()
        for loss in (losses["adversarial_scale"] * losses["adversarial"], losses["reconstruction"])
    )
    torch.testing.assert_close(game, rest, rtol=1e-2, atol=0)
    assert [player.name for player in model.players()] == ["critic", "autoencoder"]
    with pytest.raises(ConfigError, match="both or neither"):
        Autoencoder(network, KL([1, 8, 8]), critic=critic)


# ---- pictures


def test_slerp_keeps_the_length_and_ends_where_it_should() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    path = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(path.norm(dim=1), torch.full((5,), 2.0))
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]), atol=1e-6, rtol=0)
    torch.testing.assert_close(slerp(a, 2 * a, torch.tensor([0.5]))[0], 1.5 * a)


class Items:
    """600 items as a data module hands them out."""

    manifest = SimpleNamespace(splits=("val",), name="items")

    def source(self, split: str) -> Any:
        given = batch(600)
        return SimpleNamespace(
            batch=lambda ids, epochs: {key: given[key][ids] for key in ("image", "label")},
            __len__=None,
            labels=given["label"],
        )

    def finish(self, raw: dict[str, Tensor], split: str) -> dict[str, Tensor]:
        return raw


def test_panels_draw_what_a_model_is_capable_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import genlab.evaluation.latents as latents

    items = Items()
    monkeypatch.setattr(latents, "real_items", lambda data, split, n: (data.source(split), torch.arange(n)))
    monkeypatch.setattr(latents, "POINTS", 100)
    whole = Panels(vae(latent_dim=2, num_classes=3), items).save(tmp_path / "a")
    assert sorted(whole) == ["classes", "interpolation", "map", "reconstructions", "traversal"]
    plain = Panels(vae(), items).save(tmp_path / "b")
    assert sorted(plain) == ["interpolation", "reconstructions", "traversal"]
    first = Autoencoder(StridedStage(SHAPE, 2, 8, 1), FSQ([5, 5]))
    assert sorted(Panels(first, items).save(tmp_path / "c")) == ["interpolation", "reconstructions"]
    assert sorted(Panels(first, None).save(tmp_path / "d")) == ["interpolation"]
    assert all(path.stat().st_size > 500 for path in (*whole.values(), *plain.values()))


# ---- evaluation


def test_values_of_given_images_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    from runs import small_run

    from genlab.cli.build import build_data, build_model

    def values(choice: str, protocol: Protocol) -> dict[str, Any]:
        config = small_run(choice, tmp_path)
        model, data = build_model(config), build_data(config)
        data.setup()
        model.sampler = LatentSampler()
        return evaluate(model, data, protocol, progress=False)["values"]

    for make, names in (
        (VariationalNLL, {"neg_elbo", "reconstruction", "kl", "bits_per_dim"}),
        (partial(ImportanceWeightedNLL, 7), {"nll_iw7", "bits_per_dim_iw7"}),
        (Reconstruction, {"mse", "psnr", "ssim"}),
        (LatentUsage, {"kl", "active_units", "mutual_information"}),
    ):
        two, all_ = (values("model=vae", Protocol(metrics={"given": make(batch=size)}, n=10)) for size in (2, 10))
        assert two.keys() == {f"{name}_10_test.proxy" for name in names}
        assert two == pytest.approx(all_, rel=1e-4)
    protocol = Protocol(metrics={"fid": FID()}, n=4, judged="reconstructions", extractor="mnist-cnn", floor=False)
    assert protocol.name == "rfid_4_test.proxy"
    assert values("model=autoencoder", protocol)["rfid_4_test.proxy"] > 0
    with pytest.raises(ConfigError, match="DiffusionModel cannot reconstruct"):
        values("model=ddpm", protocol)
    with pytest.raises(ConfigError, match="Autoencoder cannot give a importance nll"):
        values("model=autoencoder", Protocol(metrics={"importance_nll": ImportanceWeightedNLL()}, n=10))
