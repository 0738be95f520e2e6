"""Tuning: selection and certification on different images, false certificates as rare as promised, the saved result."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kcompile
from kcompile import Approximation, InputError, Tuning
from kcompile.experiment import experiment
from kcompile.images import as_images
from kcompile.search import Maps, default_candidates
from kcompile.selection import sequence
from tests.support.equivalence import reacting
from tests.support.networks import Gated, conv_bn_relu, pooled_head

SIZE, PATCH, STRIDE = 32, 8, 2  # 13 x 13 positions


# ---------------------------------------------------------------- whole


@pytest.fixture(scope="module")
def inc() -> Any:
    torch.manual_seed(0)
    model = pooled_head(torch.nn.Sequential(conv_bn_relu(3, 6), torch.nn.MaxPool2d(2), conv_bn_relu(6, 8)), 8, 3)
    return kcompile.incrementalize(reacting(model, torch.rand(8, 3, SIZE, SIZE)), (3, SIZE, SIZE), PATCH)


@pytest.fixture(scope="module")
def images() -> Any:
    return smooth(17, 0)


def smooth(count: int, seed: int) -> Any:
    noise = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(SIZE, SIZE), mode="bicubic", align_corners=False)


FINE, COARSE = Approximation(share=0.5, coarse=4), Approximation(share=0.01, coarse=12)
GUARANTEE = {"coverage": 0.7, "confidence": 0.9}  # 7 images certify it: 13 or more are needed


@pytest.fixture(scope="module")
def tuning(inc: Any, images: Any) -> Tuning:
    return kcompile.tune(inc, images, candidates=[COARSE, FINE], stride=STRIDE, **GUARANTEE)


def test_what_is_tried_by_default(inc: Any, images: Any, tmp_path: Path) -> None:
    """Measured extents, held gates where there are any, and of a module from a file what it can have."""
    inc.save(tmp_path / "x.kcompile")
    gated = pooled_head(torch.nn.Sequential(conv_bn_relu(3, 8), Gated(8), conv_bn_relu(8, 8)), 8, 3).eval()
    tried = {}
    for name, module in (
        ("plain", inc),
        ("file", kcompile.load(tmp_path / "x.kcompile")),
        ("gated", kcompile.incrementalize(gated, (3, SIZE, SIZE), PATCH)),
    ):
        job = experiment(module, None, STRIDE, None, 0.0, None, "logit", None)
        tried[name] = default_candidates(job, as_images(images[:3], module)[0])
        assert len(set(tried[name])) == len(tried[name])
        assert {one.tau for one in tried[name]} == {1.0, 0.6, 0.5, 0.4, 0.3}
        assert {one.correct for one in tried[name]} == {0, 9}, "of 169 positions"
        assert not any(one.exact for one in tried[name])
    assert any(one.extents for one in tried["plain"])
    assert not any(one.extents for one in tried["file"])
    assert {one.gates for one in (*tried["plain"], *tried["file"])} == {"exact"}
    assert sum(one.gates == "held" for one in tried["gated"]) > 3 * sum(one.gates == "exact" for one in tried["gated"])
    assert Approximation(gates="held") in tried["gated"]


def test_the_result_says_what_was_certified(inc: Any, images: Any, tuning: Tuning) -> None:
    assert tuning.images == 9
    assert 0 <= tuning.met <= 9
    assert tuning.bound >= 0.7
    assert len(tuning.trials) == 2
    assert "70%" in str(tuning)
    if not tuning.approximation.exact:
        assert tuning.worst <= 1
        assert any(told["certified"] for told in tuning.trials)


def test_a_map_by_the_tuning_is_that_of_its_approximation(inc: Any, images: Any, tuning: Tuning) -> None:
    heat = kcompile.occlusion(inc, images[0], tuning=tuning, score="logit")
    same = kcompile.occlusion(inc, images[0], stride=STRIDE, approximation=tuning.approximation, score="logit")
    assert np.array_equal(heat.all_scores, same.all_scores)
    assert heat.scores.shape == (13, 13)


def test_an_unreachable_target_selects_the_exact_path(inc: Any, images: Any) -> None:
    found = kcompile.tune(inc, images, candidates=[COARSE], target_ssim=1.0, stride=STRIDE, **GUARANTEE)
    assert found.approximation.exact
    assert (found.bound, found.worst, found.speedup) == (1.0, 1.0, 1.0)
    assert kcompile.occlusion(inc, images[0], tuning=found, score="logit").approximation is None


def test_the_halves_are_used_for_one_thing_each(inc: Any, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image of the certification half is looked at before the order is fixed."""
    seen: list[tuple[bytes, bool]] = []
    make = Maps.make

    def spy(self: Maps, given: Any, *rest: Any) -> Any:
        seen.append((given.rows[0].numpy().tobytes(), rest[0] is None))
        return make(self, given, *rest)

    monkeypatch.setattr(Maps, "make", spy)
    order: list[int] = []
    fixed = sequence

    def noted(*args: Any) -> Any:
        order.append(len(seen))
        return fixed(*args)

    monkeypatch.setattr("kcompile.search.sequence", noted)
    kcompile.tune(inc, images, candidates=[FINE, COARSE], stride=STRIDE, **GUARANTEE)
    before, after = {one for one, _ in seen[: order[0]]}, {one for one, _ in seen[order[0] :]}
    assert len(before) == 8
    assert not before & after
    assert len([1 for _, exact in seen if exact]) <= 17  # each exact map once


def test_it_is_saved_and_read(tuning: Tuning, tmp_path: Path) -> None:
    tuning.save(tmp_path / "tuning.json")
    assert Tuning.load(tmp_path / "tuning.json") == tuning


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"format": 99}', '{"format": 3, "approximation": {"tau": 7}}'],
    ids=["empty", "list", "no format", "deep", "format", "approximation"],
)
def test_files_that_hold_no_tuning_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(kcompile.InputError):
        Tuning.load(tmp_path / "t.json")


def test_files_that_are_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "heat.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    with pytest.raises(kcompile.InputError, match="holds no tuning: it isn't JSON"):
        Tuning.load(tmp_path / "heat.png")
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(kcompile.InputError, match="can't be read"):
            Tuning.load(path)


def test_a_file_of_unknown_fields_is_refused(tuning: Tuning, tmp_path: Path) -> None:
    tuning.save(tmp_path / "t.json")
    facts = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**facts, "more": 1}))
    with pytest.raises(kcompile.InputError, match="holds no tuning"):
        Tuning.load(tmp_path / "t.json")


@pytest.mark.parametrize(("samples", "pays"), [(0, True), (8, False)])
def test_the_error_estimate_is_part_of_the_price(
    inc: Any, images: Any, samples: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 x 4 positions 8 more are half a map: what saves a fifth then doesn't pay."""
    make = Maps.make

    def priced(self: Maps, given: Any, approximation: Any, *rest: Any) -> Any:
        return make(self, given, None, *rest)[0], 1.0 if approximation is None else 0.8

    monkeypatch.setattr(Maps, "make", priced)
    asked = {"candidates": [Approximation(tau=0.9, samples=samples)], **GUARANTEE, "stride": 8}
    found = kcompile.tune(inc, images, **asked)
    assert found.approximation.exact != pays
    assert found.speedup == pytest.approx(1.25 if pays else 1)
    assert found.trials[0]["cost"] == pytest.approx(0.8 + samples / 16)


def test_a_certificate_is_for_one_class(inc: Any, images: Any) -> None:
    with pytest.raises(kcompile.InputError, match=r"target is \[0, 1\]; allowed is one class"):
        kcompile.tune(inc, images, stride=STRIDE, target=[0, 1], **GUARANTEE)


def test_candidates_that_a_model_cannot_have_are_told_why(inc: Any, images: Any) -> None:
    candidates = [Approximation(gates="held"), Approximation(cut="layer9")]
    with pytest.raises(kcompile.InputError, match=r"can have none of the candidates: .*layer9.*; gates is 'held', but"):
        kcompile.tune(inc, images, stride=8, candidates=iter(candidates), **GUARANTEE)
    found = kcompile.tune(inc, images, stride=8, candidates=[*candidates, Approximation(tau=0.9)], **GUARANTEE)
    assert ["refused" in trial for trial in found.trials] == [True, True, False]
    assert "layer9" in found.trials[1]["refused"]


def test_of_two_close_classes_half_precision_explains_the_exact_ones(inc: Any, images: Any, monkeypatch: Any) -> None:
    """bfloat16 has them as equal, and would take the first."""
    monkeypatch.setattr("kcompile.variants.has_arithmetic", lambda *_: True)
    model = copy.deepcopy(inc.model)
    head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        head.weight[1:] = head.weight[:1]
        head.bias[:] = torch.tensor([3.0, 3.001, 2.0]) + head.bias[0]
    near = kcompile.incrementalize(model, (3, SIZE, SIZE), PATCH)
    settings = Approximation(dtype="bfloat16", samples=0)
    found = [kcompile.occlusion(near, images[:4], stride=8, approximation=one) for one in (None, settings)]
    assert [heat.target for heat in found[1]] == [heat.target for heat in found[0]] == [1] * 4
    assert any(heat.base_scores[0] >= heat.base_scores[1] for heat in found[1]), "void"


def test_a_tuning_is_a_tuning(inc: Any, images: Any) -> None:
    with pytest.raises(kcompile.InputError, match="tuning is a str"):
        kcompile.occlusion(inc, images[0], tuning="tuning.json")
    with pytest.raises(kcompile.InputError, match="candidates is a Approximation"):
        kcompile.tune(inc, images, stride=8, candidates=Approximation(tau=0.5), **GUARANTEE)  # type: ignore[arg-type]


def test_folders_of_a_tuning_are_made(tuning: Tuning, tmp_path: Path) -> None:
    tuning.save(tmp_path / "new" / "t.json")
    assert Tuning.load(tmp_path / "new" / "t.json") == tuning
    with pytest.raises(kcompile.InputError, match="can't write"):
        tuning.save(tmp_path / "new" / "t.json" / "t.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "probability"}, "score is 'probability'; this tuning is for 'logit'"),
        ({"score": "logit", "stride": 4}, r"stride is \(4, 4\)"),
        ({"score": "logit", "patch_shape": 6}, r"patch_shape is \(6, 6\)"),
        ({"score": "logit", "value": 1.0}, "value is 1; this tuning is for 0:"),
        ({"score": "logit", "target": 1}, "target is '1'; this tuning is for 'predicted'"),
        ({"score": "logit", "roi": (0, 0, 20, 20)}, "region is"),
        ({"score": "logit", "approximation": Approximation()}, "both given"),
    ],
)
def test_maps_of_another_kind_have_no_promise(
    inc: Any, images: Any, tuning: Tuning, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(kcompile.InputError, match=message):
        kcompile.occlusion(inc, images[0], tuning=tuning, **options)


def test_an_image_given_twice_is_refused(inc: Any, images: Any) -> None:
    with pytest.raises(kcompile.InputError, match="images 3 and 17 are equal"):
        kcompile.tune(inc, torch.cat([images, images[3:4]]), stride=STRIDE, **GUARANTEE)


def test_another_model_has_no_promise(inc: Any, images: Any, tuning: Tuning) -> None:
    other = replace(tuning, kind=replace(tuning.kind, model="0" * 16))
    with pytest.raises(kcompile.InputError, match="the model, its weights or the patch"):
        kcompile.occlusion(inc, images[0], tuning=other, score="logit")


def test_a_plain_model_takes_the_patch_of_its_tuning(images: Any, tuning: Tuning, inc: Any) -> None:
    assert tuning.kind.patch_shape == (PATCH, PATCH) != (16, 16)
    want = kcompile.occlusion(inc, images[0], tuning=tuning, score="logit").scores
    got = kcompile.occlusion(inc.model, images[0], tuning=tuning, score="logit")
    np.testing.assert_allclose(got.scores, want, rtol=1e-4, atol=1e-5)


def test_numpy_s_numbers_can_be_saved(tmp_path: Path) -> None:
    given = Approximation(share=np.float32(0.5), coarse=np.int64(8), samples=np.int64(32), tau=np.float64(0.5))
    assert json.loads(json.dumps(given.to_dict()))["coarse"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_ssim": 0}, "target_ssim is 0"),
        ({"target_ssim": 1.1}, "target_ssim is 1.1"),
        ({"coverage": 1.0}, "coverage is 1.0"),
        ({"confidence": 0}, "confidence is 0"),
        ({"coverage": 0.9, "confidence": 0.9}, "17 images are too few .* at least 43"),
    ],
)
def test_bad_guarantees_are_refused_before_any_map(
    inc: Any, images: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Maps, "make", lambda *_: pytest.fail("a map was made"))
    with pytest.raises(kcompile.InputError, match=message):
        kcompile.tune(inc, images, stride=STRIDE, **options)


def test_ctrl_c_ends_the_search(inc: Any, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kcompile.scorers import Exact

    at: Callable[..., Any] = Exact.at

    def stopped(self: Exact, positions: Any) -> Any:
        for count, group in enumerate(at(self, positions)):
            if count or len(positions) < 100:
                raise KeyboardInterrupt
            yield group
        raise KeyboardInterrupt

    monkeypatch.setattr(Exact, "at", stopped)
    with pytest.raises(KeyboardInterrupt):
        kcompile.tune(inc, images, candidates=[FINE], stride=STRIDE, **GUARANTEE)


@pytest.mark.parametrize("version", [1, 2, 99])
def test_files_of_other_versions_are_refused(tuning: Tuning, tmp_path: Path, version: int) -> None:
    tuning.save(path := tmp_path / "t.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(InputError, match="another version of kcompile, whose promise was another one"):
        Tuning.load(path)


@pytest.mark.parametrize(
    ("candidates", "said"),
    [([{"tau": 0.4}], "candidates has a dict, {'tau': 0.4}; allowed"), ([], "candidates is empty; allowed")],
)
def test_candidates_that_are_none(candidates: Any, said: str, inc: Any, images: Any) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        kcompile.tune(inc, images, candidates=candidates, stride=STRIDE, **GUARANTEE)


def test_without_a_certificate_it_says_how_near_it_came(tuning: Tuning) -> None:
    told = ({"candidate": "x", "met": 0.6, "cost": 0.2, "certified": None}, {"candidate": "y", "met": 0.8})
    found = str(replace(tuning, approximation=Approximation(), trials=told))
    assert found.startswith("exact: none of 2 approximations is certified to reach SSIM")
    assert "the best reached it on 80% of the images" in found
