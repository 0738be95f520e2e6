"""Linear tails against brute force: the same gradient times the same change, by plain PyTorch on patched images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile import Approximation, InputError
from kcompile.corrected import lattice
from kcompile.cuda_ops import reference
from tests.support.equivalence import incremental, reacting
from tests.support.networks import Call, Residual, conv, conv_bn_relu
from tests.support.running import paste

SHAPE, PATCH = (3, 22, 27), (5, 4)
Split = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def linear_net() -> nn.Sequential:
    """No op in it that is not linear; a head of 3 classes."""
    return nn.Sequential(
        conv(3, 4, 3, stride=2), nn.AvgPool2d(2, ceil_mode=True), conv(4, 5, 3), nn.Flatten(), nn.Linear(5 * 6 * 7, 3)
    )


def curved_net(classes: int = 3) -> nn.Sequential:
    """ReLUs, a max pool, a residual block, a hidden layer in the head."""
    return nn.Sequential(
        conv_bn_relu(3, 6), nn.MaxPool2d(2), Residual(6, 8, 2), conv_bn_relu(8, 8),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, classes),
    )  # fmt: skip


def compiled(model: nn.Module) -> tuple[kcompile.IncrementalModule, Tensor]:
    model, image = reacting(model, torch.randn(8, *SHAPE)).double(), torch.randn(*SHAPE, dtype=torch.float64)
    if isinstance(model, nn.Sequential) and isinstance(model[-1], nn.Linear):
        with torch.no_grad():
            model[-1].bias.sub_(model(image[None])[0])  # logits about 0: no probability is saturated
    return kcompile.incrementalize(model, SHAPE, PATCH), image


def brute(model: nn.Module, image: Tensor, positions: Any, split: Split, function: Callable[[Tensor], Tensor]) -> Any:
    """[N, K]: the functions' values at the base, and their gradients at the cut times the change there."""
    head, tail = split
    spots = positions.reshape(-1, 2)
    patches = torch.zeros(len(spots), 3, *PATCH, dtype=image.dtype)
    with torch.no_grad():
        changed = head(paste(image.expand(len(spots), *SHAPE), patches, spots))
        at = head(image[None])
    gradients = torch.autograd.functional.jacobian(lambda x: function(tail(x))[0], at)
    moved = torch.einsum("kx,nx->nk", gradients.flatten(1), (changed - at).flatten(1))
    with torch.no_grad():
        return function(tail(at)) + moved


def close(found: Any, want: Any, within: float = 1e-6) -> None:
    """Maps are float32; the maps vary, so that equality says something."""
    want = np.asarray(want)
    assert np.ptp(want, axis=0).max() > 1e-3 * np.abs(want).max()
    np.testing.assert_allclose(found.reshape(want.shape), want, rtol=0, atol=within * np.abs(want).max())


@pytest.mark.parametrize("reference", ["base", "secant", "mean-gradient"])
@pytest.mark.parametrize("cut", [0.0, 0.2, 0.6, "0", "1", "2", "4"])
def test_linear_networks_are_exact_whatever_the_cut(cut: Any, reference: Any, seed: int) -> None:
    inc, image = compiled(linear_net())
    exact = kcompile.occlusion(inc, image, stride=3, score="logit", target=[0, 2, 1])
    if cut == "4":
        with pytest.raises(InputError, match="allowed are cuts before that"):
            kcompile.occlusion(inc, image, approximation=Approximation(cut=cut))
        return
    settings = Approximation(cut=cut, reference=reference)
    found = kcompile.occlusion(inc, image, stride=3, score="logit", target=[0, 2, 1], approximation=settings)
    close(found[0].all_scores, exact[0].all_scores, 1e-6)
    assert found[0].approximation == settings
    np.testing.assert_allclose(found[0].base_scores, exact[0].base_scores, rtol=1e-6)


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_gradient_times_change(depth: int, seed: int) -> None:
    """A cut behind each layer, 0 being the input (the gradient simplification)."""
    model = curved_net()
    inc, image = compiled(model)
    cut: Any = str(depth - 1) if depth else 0.0
    heat = kcompile.occlusion(inc, image, stride=3, score="logit", target=1, approximation=Approximation(cut=cut))
    want = brute(model, image, heat.positions, (model[:depth], model[depth:]), lambda z: z)
    close(heat.scores, want[:, 1])
    assert np.isnan(heat.all_scores[..., 0]).all()
    exact = kcompile.occlusion(inc, image, stride=3, score="logit", target=1)
    assert np.abs(exact.scores - heat.scores).max() > 1e-3 * np.abs(exact.scores).max(), "the tail is not linear"


@pytest.mark.parametrize(("classes", "function"), [(3, None), (12, "odds"), (1, None)])
def test_probabilities(classes: int, function: str | None, seed: int) -> None:
    """The softmax of all approximated logits, or the sigmoid of the log-odds where classes are many."""
    model = curved_net(classes)
    inc, image = compiled(model)
    heat = kcompile.occlusion(inc, image, stride=3, target=0, approximation=Approximation(cut="2"))
    split = (model[:3], model[3:])
    if function is None:
        logits = brute(model, image, heat.positions, split, lambda z: z)
        want = logits.softmax(1) if classes > 1 else logits.sigmoid()
        close(heat.all_scores, want)
    else:
        odds = brute(model, image, heat.positions, split, lambda z: z[:, :1] - z[:, 1:].logsumexp(1, keepdim=True))
        close(heat.scores, odds.sigmoid()[:, 0])
        assert np.isnan(heat.all_scores[..., 1:]).all()


class Wide(nn.Module):
    """A linear head on what is curved before; it ends with a softmax of its own, if asked for."""

    def __init__(self, softmax: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn_relu(3, 6), nn.MaxPool2d(2), Residual(6, 8, 2))
        self.head = nn.Linear(8, 4)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.features(x).mean((2, 3)))
        return z.softmax(1) if self.softmax else z


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("softmax", [False, True])
def test_a_linear_head_is_exact(softmax: bool, score: str, seed: int) -> None:
    """Behind the last layer that is not linear; probabilities too, as the softmax is taken of the logits."""
    inc, image = compiled(Wide(softmax))
    if softmax and score == "logit":
        return  # the log of a softmax is not linear
    options: Any = {"stride": 3, "score": score, "target": [0, 1, 2, 3]}
    exact = kcompile.occlusion(inc, image, **options)
    found = kcompile.occlusion(inc, image, **options, approximation=Approximation(cut="features"))
    close(found[0].all_scores, exact[0].all_scores)


def test_a_cut_inside_a_block_goes_through_two_tensors(seed: int) -> None:
    """The branch is cut behind its first convolution; the shortcut passes beside it."""
    model = Wide()
    inc, image = compiled(model)
    block = model.features[2]
    first = next(
        name for name, part in model.named_modules() if name.startswith("features.2.") and isinstance(part, nn.Conv2d)
    )
    heat = kcompile.occlusion(inc, image, stride=3, score="logit", target=2, approximation=Approximation(cut=first))
    from kcompile.linear_tail import linear_tail

    assert len(linear_tail(inc, first).bases) == 2
    inner = dict(model.named_modules())[first]
    stem = model.features[:2]
    spots = torch.from_numpy(heat.positions.reshape(-1, 2))
    with torch.no_grad():
        copies = paste(
            image.expand(len(spots), *SHAPE), torch.zeros(len(spots), 3, *PATCH, dtype=image.dtype), spots.numpy()
        )
        outer_at, outer = stem(image[None]), stem(copies)
        inner_at, changed = inner(outer_at), inner(outer)

    def tail(x: Tensor, y: Tensor) -> Tensor:
        handle = inner.register_forward_hook(lambda *_: y)
        result: Tensor = model.head(block(x).mean((2, 3)))[0, 2]
        handle.remove()
        return result

    slopes = torch.autograd.functional.jacobian(tail, (outer_at, inner_at))
    want = tail(outer_at, inner_at).detach() + sum(
        ((now - at) * slope).flatten(1).sum(1)
        for now, at, slope in zip((outer, changed), (outer_at, inner_at), slopes, strict=True)
    )
    close(heat.scores, want[:, None])


@pytest.mark.parametrize("reference", ["secant", "mean-gradient"])
def test_second_reference_points(reference: Any, seed: int) -> None:
    """Mean slopes by hand; for the secant, slope times the whole change is the whole change of a quadratic tail."""
    model = nn.Sequential(conv(3, 4, 3, stride=2), Square(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    inc, image = compiled(model)
    settings = Approximation(cut="0", reference=reference)
    heat = kcompile.occlusion(inc, image, stride=3, score="logit", target=1, approximation=settings)
    spots = heat.positions.reshape(-1, 2)
    chosen = [[0, 0]] if reference == "secant" else spots[np.linspace(0, len(spots) - 1, 6).round().astype(int)[1:-1]]
    zeros = torch.zeros(1, 3, *PATCH, dtype=image.dtype)
    copies = [paste(image[None], zeros, np.array([spot])) for spot in chosen]
    if reference == "secant":
        whole = image[None].clone()
        whole[..., : 22 // 5 * 5, : 27 // 4 * 4] = 0
        copies = [whole]
    with torch.no_grad():
        at, others = model[0](image[None]), [model[0](copy) for copy in copies]
        everywhere = model[0](paste(image.expand(len(spots), *SHAPE), zeros.expand(len(spots), -1, -1, -1), spots))
    mean = (at + sum(others)) / (len(others) + 1)  # the gradient of a square is linear: that of the mean point
    slope = torch.autograd.functional.jacobian(lambda x: model[1:](x)[0, 1], mean)
    with torch.no_grad():
        want = model(image[None])[0, 1] + ((everywhere - at) * slope).flatten(1).sum(1)
    close(heat.scores, want[:, None])


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_of_the_cuts_by_work(seed: int) -> None:
    """A larger share never cuts earlier, and stays within its share; the end is the exact path."""
    from kcompile.linear_tail import linear_tail

    inc, image = compiled(curved_net())
    shares = [0.0, 0.1, 0.3, 0.5, 0.8, 0.99]
    done = [linear_tail(inc, share) for share in shares]
    found = [one.share for one in done]
    assert found == sorted(found)
    assert all(spent <= share for spent, share in zip(found, shares, strict=True))
    assert found[0] == 0 < found[-1]
    assert linear_tail(inc, 0.3) is done[2], "compiled once"
    end = kcompile.occlusion(inc, image, stride=5, approximation=Approximation(cut=1.0))
    np.testing.assert_array_equal(end.all_scores, kcompile.occlusion(inc, image, stride=5).all_scores)


def test_several_images_fills_and_a_user_s_score(seed: int) -> None:
    model = curved_net()
    inc, image = compiled(model)
    images = [image, torch.randn_like(image)]
    settings = Approximation(cut="1")

    def score(z: Tensor) -> Tensor:
        return (z[:, 0] + 1) ** 2

    heats = kcompile.occlusion(inc, images, stride=4, value="blur", score=score, approximation=settings)
    for heat, one in zip(heats, images, strict=True):
        alone = kcompile.occlusion(inc, one, stride=4, value="blur", score=score, approximation=settings)
        np.testing.assert_array_equal(heat.all_scores, alone.all_scores)
    assert not np.allclose(heats[0].scores, heats[1].scores)
    plain = kcompile.occlusion(inc, image, stride=4, score=score, approximation=settings)
    want = brute(model, image, plain.positions, (model[:2], model[2:]), lambda z: score(z)[:, None])
    close(plain.scores, want)
    with torch.inference_mode():
        again = kcompile.occlusion(inc, image, stride=4, score=score, approximation=settings)
    np.testing.assert_array_equal(again.all_scores, plain.all_scores)


def test_changed_weights(seed: int) -> None:
    model = curved_net()
    inc, image = compiled(model)
    settings = Approximation(cut="1")
    before = kcompile.occlusion(inc, image, stride=6, approximation=settings)
    with torch.no_grad():
        model[-1].weight.mul_(0.5)
    with pytest.raises(kcompile.StaleWeightsError):
        kcompile.occlusion(inc, image, stride=6, approximation=settings)
    inc.refresh()
    after = kcompile.occlusion(inc, image, stride=6, score="logit", target=0, approximation=settings)
    want = brute(model, image, after.positions, (model[:2], model[2:]), lambda z: z)
    close(after.scores, want[:, 0])
    assert not np.allclose(before.base_scores, after.base_scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"approximation": Approximation(cut="17")}, "no layer of that name"),
        ({"approximation": Approximation(cut="6")}, "allowed are cuts before that"),
        ({"approximation": Approximation(cut="1"), "score": lambda z: z.detach()[:, :1]}, "no differentiable function"),
    ],
)
def test_bad_cuts(change: dict[str, Any], message: str) -> None:
    inc, image = compiled(curved_net())
    with pytest.raises(InputError, match=message):
        kcompile.occlusion(inc, image, **change)


def test_where_it_can_t_run(tmp_path: Any) -> None:
    inc, image = compiled(curved_net())
    settings = Approximation(cut="1")
    inc.save(tmp_path / "x.kcompile")
    with pytest.raises(InputError, match="loaded from a file"):
        kcompile.occlusion(kcompile.load(tmp_path / "x.kcompile"), image, approximation=settings)
    inc.memory_budget = 1 << 30
    with pytest.raises(InputError, match="whose memory no budget bounds"):
        kcompile.occlusion(inc, image, approximation=settings)
    inc.memory_budget = None
    with torch.autocast("cpu"), pytest.raises(InputError, match="under autocast"):
        kcompile.occlusion(inc, image, approximation=settings)


@pytest.mark.parametrize("extent", [(), (3,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("functions", [1, 3])
def test_contract(functions: int, extent: Sequence[int], seed: int) -> None:
    patch, base = torch.randn(2, 5, 4, *extent).double()
    slopes = torch.randn(5, functions * 4, *extent).double()
    want = torch.stack([(part * (patch - base)).flatten(1).sum(1) for part in slopes.chunk(functions, dim=1)], dim=1)
    torch.testing.assert_close(reference.contract(patch, base, slopes), want)


@pytest.mark.parametrize("depth", [0, 2, 3])
def test_lowered_for_gpus(depth: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused graphs, on the reference ops: float64, which the CPU's own lowering leaves alone."""
    from kcompile.runtime import lowering_cuda

    model = curved_net()
    inc, image = compiled(model)
    options: Any = {"stride": 3, "score": "logit", "target": 1}
    settings = Approximation(cut=str(depth - 1) if depth else 0.0)
    plain = kcompile.occlusion(inc, image, **options, approximation=settings)
    monkeypatch.setattr(lowering_cuda, "available", lambda _: True)
    inc.refresh()
    fused = kcompile.occlusion(inc, image, **options, approximation=settings)
    close(fused.scores, plain.scores)


def permuted(order: tuple[int, ...]) -> Call:
    return Call(lambda x: x.permute(order))


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    ("shape", "patch", "layers"),
    [
        ((2, 40), (5,), [nn.Conv1d(2, 4, 3, 2), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(36, 3)]),
        ((2, 9, 8, 7), (3, 2, 2), [nn.Conv3d(2, 3, 3), nn.AvgPool3d(2, 1), nn.Flatten(), nn.Linear(3 * 6 * 5 * 4, 3)]),
        (
            (2, 12, 10), (3, 4),
            [conv(2, 4), permuted((0, 2, 3, 1)), nn.Linear(4, 5), nn.Flatten(), nn.Linear(600, 3)],
        ),
        ((2, 12, 10), (3, 4), [permuted((0, 2, 3, 1)), nn.Unflatten(3, (1, 2)), nn.Flatten(), nn.Linear(240, 3)]),
    ],
    ids=["1d", "3d", "nhwc", "split channels"],
)  # fmt: skip
def test_axes_and_layouts(shape: Any, patch: Any, layers: list[nn.Module], cut: float, seed: int) -> None:
    """Linear networks of other layouts: exact whatever the cut."""
    inc = incremental(nn.Sequential(*layers).double(), shape, patch)
    image = torch.randn(*shape, dtype=torch.float64)
    options: Any = {"patch_shape": patch, "stride": 2, "score": "logit", "target": 1}
    exact = kcompile.occlusion(inc, image, **options)
    found = kcompile.occlusion(inc, image, **options, approximation=Approximation(cut=cut))
    close(found.scores, exact.scores)


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_corrections(score: str, seed: int) -> None:
    """A lattice of all positions makes an exact map, a coarse one is exact at its own positions."""
    model = curved_net()
    inc, image = compiled(model)
    options: Any = {"stride": 3, "score": score, "target": 1}
    exact = kcompile.occlusion(inc, image, **options)
    rows, cols = exact.scores.shape
    maps = [
        kcompile.occlusion(inc, image, **options, approximation=Approximation(cut="1", correct=correct))
        for correct in (0, 9, max(rows, cols) ** 2)
    ]
    close(maps[2].scores, exact.scores)
    lines = lattice(np.stack(np.meshgrid(*map(np.arange, (rows, cols)), indexing="ij"), -1).reshape(-1, 2), 9)
    scale = np.abs(exact.scores).max()
    np.testing.assert_allclose(maps[1].scores[np.ix_(*lines)], exact.scores[np.ix_(*lines)], atol=1e-6 * scale)
    assert np.abs(maps[0].scores[np.ix_(*lines)] - exact.scores[np.ix_(*lines)]).max() > 1e-4 * scale
    assert "by about 9 exact" in repr(maps[1])


def test_scores_come_while_the_map_is_made(seed: int) -> None:
    """The tail computes nothing, so nothing waits for it; a map that is stopped has the positions that were done."""
    inc, image = compiled(curved_net())
    seen: list[int] = []

    def callback(progress: kcompile.Progress) -> bool:
        seen.append(progress.done)
        return len(seen) < 3

    settings = Approximation(cut="1")
    heat = kcompile.occlusion(inc, image, stride=1, target=0, approximation=settings, callback=callback)
    assert len(seen) == 3
    assert seen[0] < seen[1] < seen[2] < heat.scores.size
    assert int(np.isfinite(heat.scores).sum()) == seen[2]
    whole = kcompile.occlusion(inc, image, stride=1, target=0, approximation=settings)
    known = np.isfinite(heat.scores)
    np.testing.assert_array_equal(heat.scores[known], whole.scores[known])
    assert not heat.complete
