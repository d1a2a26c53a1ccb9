"""Students, SCAM, the teacher on shared weights, and the frozen model's loader."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from istd.data.crops import Batch
from istd.losses import bce_and_soft_iou, binary_cross_entropy, combined, distillation, soft_iou
from istd.objectives import Segmentation, StudentOuter, TeacherInner
from istd.students import STUDENTS, create_student, in_fast_format, inference_form, memory_format, stages_of
from istd.students.ggl import gradient_magnitude
from istd.students.published import create_on_meta
from istd.students.repisd import RepConv
from istd.teacher import SCAM, Teacher, VFMWeightsError, cached_tokens, crop_tokens, image_tokens, load_vfm
from istd.teacher.vfm import FrozenViT
from tests.istd.references import by_cost

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", list(STUDENTS))
def test_a_student_declares_its_stages_and_decodes_what_it_encodes(name):
    """At a quarter of the width; at width 1 beside the reference values."""
    torch.manual_seed(0)
    student = create_student(name, 0.25).eval()
    x = torch.randn(2, student.in_channels, 64, 96)
    features = student.encode(x)
    assert [(f.shape[1], 64 // f.shape[2]) for f in features] == [tuple(s) for s in stages_of(student)]
    out = student(x)
    assert out.shape == (2, 1, 64, 96)
    assert torch.allclose(student.decode(features), out)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STUDENTS))
def test_the_registered_operations_are_those_of_a_counter(name):
    """Convolutions and matrix products of inference on the meta device, where nothing is computed."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = create_on_meta(name).eval()
        network(torch.zeros(1, network.in_channels, 256, 256, device="meta"))
    assert STUDENTS[name].gflops == round(counter.get_total_flops() / 1e9, 2)


@pytest.mark.parametrize("name", list(STUDENTS))
def test_sizes_are_near_the_published_ones(name):
    """The exact counts are checked beside the reference values; this holds for networks without a reference, too."""
    count = sum(p.numel() for p in create_on_meta(name).parameters())
    assert count == pytest.approx(STUDENTS[name].published_parameters, rel=0.2)


# What is normalised before a convolution: images, sums of maps, and maps that are joined with a guide.
_IMAGE = ["stem.0"]
_SUMS = [f"decoder.{i}.{side}_norm" for i in range(3) for side in ("fine", "coarse")]
LEFT_NORMS = {
    **{name: _IMAGE for name in ("acm", "acm-lesps", "alcnet", "alcnet-lesps")},
    **{name: _SUMS for name in ("gsfa", "gsfa-per-image")},
    "isnet": [*_IMAGE, *(f"edge.{i}.gated.gate.0" for i in range(3))],
}


def with_random_norms(name, width):
    """A student in float64 whose normalisations have statistics and factors of their own."""
    torch.manual_seed(0)
    student = create_student(name, width).double().requires_grad_(False)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return student


def test_branches_merge_into_one_convolution_with_the_same_output():
    """In float64, to rounding: batch normalisation in eval mode is linear, and so are all branches."""
    student, x = with_random_norms("repisd", 0.5), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    merged = inference_form(student)
    expected = student.eval()(x)
    assert torch.allclose(merged(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (merged, student)]
    assert sizes[0] < 0.55 * sizes[1]
    branched = [m for m in merged.modules() if isinstance(m, RepConv)]
    assert len(branched) == 8
    assert not any(isinstance(m, nn.BatchNorm2d) for conv in branched for m in conv.modules())
    assert any(hasattr(m, "full_norm") for m in student.modules())  # the original is untouched


@pytest.mark.parametrize("name", by_cost(STUDENTS))
def test_the_inference_form_has_the_same_output_and_no_normalisation_after_a_convolution(name):
    """In float64, to rounding. What remains of batch normalisation stands before a convolution."""
    student = with_random_norms(name, 0.25)
    x = torch.randn(1, student.in_channels, 64, 64, dtype=torch.float64)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    deployed = inference_form(student)
    expected = student.eval()(x)
    assert torch.allclose(deployed(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    left = [k for k, m in deployed.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == LEFT_NORMS.get(name, []), name
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())  # the original is untouched


@pytest.mark.parametrize("cout", [4, 6])
def test_branches_in_eval_mode_are_their_formula(cout):
    """One convolution computes what the branches do, each on its own; with 4 channels, the input is one of them."""
    torch.manual_seed(0)
    conv, x = RepConv(4, cout).double(), torch.randn(2, 4, 7, 9, dtype=torch.float64)
    conv(x)  # statistics of their own
    conv.eval()
    free = conv.contrast.weight
    contrast = F.conv2d(x, free, padding=1) - F.conv2d(x, free.sum((2, 3), keepdim=True))
    expected = conv.full_norm(conv.full(x)) + conv.contrast_norm(contrast) + conv.point_norm(conv.point(x))
    expected = expected + (conv.identity(x) if cout == 4 else 0.0)
    assert torch.allclose(conv(x), expected, rtol=0, atol=1e-12)


def test_repisd_decodes_the_logit_of_the_target_class():
    student, x = with_random_norms("repisd", 0.25).eval(), torch.randn(2, 3, 16, 24, dtype=torch.float64)
    features = student.encode(x)
    assert torch.equal(student.decode(features), student.class_logits(features)[:, 1:])


@pytest.mark.parametrize("name", list(STUDENTS))
def test_the_first_of_all_maps_is_the_one_at_test(name):
    torch.manual_seed(0)
    student = create_student(name, 0.25).double().eval()
    features = student.encode(torch.randn(1, student.in_channels, 64, 64, dtype=torch.float64))
    maps = student.decode_all(features)
    assert len(maps) == len(student.outputs)
    assert maps[0].shape == (1, 1, 64, 64)
    assert torch.allclose(maps[0], student.decode(features), rtol=0, atol=1e-12)


def test_the_gradient_magnitude_is_that_of_central_differences():
    image = np.random.default_rng(0).random((2, 12, 15))
    differences = [ndimage.correlate1d(image, [-0.5, 0.0, 0.5], axis, mode="constant") for axis in (1, 2)]
    found = gradient_magnitude(torch.from_numpy(image)[None])
    assert np.allclose(found[0].numpy(), np.hypot(*differences), atol=1e-12)


def test_channels_last_gives_the_same_gradients():
    """The memory format that training uses, against float64, on a network whose shortcuts are strided 1x1 convolutions.

    Rounding is 1e-6 of the gradient's norm here; a unit at the kink of a ReLU may add 1e-4 on another machine. The
    broken strided 1x1 kernel of torch 2.15 crashed here or was off by its whole size.
    """
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)

    def gradient(dtype, layout):
        torch.manual_seed(0)
        student = create_student("acm", 0.25).to(dtype).to(memory_format=layout)
        student(x.to(dtype).to(memory_format=layout)).square().mean().backward()
        return torch.cat([p.grad.flatten().double() for p in student.parameters()])

    exact = gradient(torch.float64, torch.contiguous_format)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = gradient(torch.float32, layout)
        assert float((found - exact).norm() / exact.norm()) < 1e-3, layout


@pytest.mark.parametrize("name", ["alcl", "dna"])
def test_the_memory_format_is_chosen_by_network_device_precision_and_use(name):
    """DNA-Net trains faster in contiguous order, in float32 on a CPU; the meta device stands for any other."""
    student, wide = create_student(name, 0.25), name == "dna"
    assert student.contiguous_training == wide
    plain, last = torch.contiguous_format, torch.channels_last
    assert memory_format(student, training=True) == (plain if wide else last)
    assert memory_format(student, training=False) == last
    assert memory_format(student, training=True, precision=torch.bfloat16) == last
    assert memory_format(create_on_meta(name, 0.25), training=True) == last
    for training in (False, True):
        found = in_fast_format(student, training=training)
        expected = memory_format(student, training=training)
        assert found is student
        assert all(p.is_contiguous(memory_format=expected) for p in student.parameters() if p.ndim == 4)


def test_unknown_students_and_widths_are_named():
    with pytest.raises(ValueError, match=r"Unknown student 'unet'.*alcl.*mlcl"):
        create_student("unet")
    with pytest.raises(ValueError, match="`width`"):
        create_student("alcl", 0.0)
    with pytest.raises(TypeError, match="no student"):
        stages_of(nn.Linear(1, 1))


def test_losses_by_hand():
    logits = torch.tensor([0.0, 0.0]).view(1, 1, 1, 2)
    target = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    assert float(binary_cross_entropy(logits, target)) == pytest.approx(np.log(2))
    assert float(soft_iou(logits, target)) == pytest.approx(1 - 1.5 / 2.5)
    assert float(bce_and_soft_iou(logits, target)) == pytest.approx(np.log(2) + 0.4)
    assert float(distillation(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 4 * np.log(3)))) == pytest.approx(
        (0.5 - 0.75) ** 2
    )
    assert soft_iou(torch.full((1, 1, 4, 4), -50.0), torch.zeros(1, 1, 4, 4)) == 0.0  # an empty crop, predicted empty


def test_isnet_declares_the_loss_that_basicirstd_gives_its_outline():
    """10 BCE + soft-IoU of the outline, on a case by hand: logits 0 and log 3, targets 1 and 0."""
    mask, edge = create_student("isnet", 0.25).outputs
    assert mask.loss is None
    logits, target = torch.tensor([0.0, np.log(3)]).view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    cross_entropy = (np.log(2) + np.log(4)) / 2
    overlap = 1 - (0.5 + 1) / (1 + 0.75 + 1)
    assert float(combined(edge.loss)(logits, target)) == pytest.approx(10 * cross_entropy + overlap)
    with pytest.raises(ValueError, match="Unknown segmentation loss 'dice'"):
        combined(((1.0, "dice"),))
    with pytest.raises(ValueError, match="`terms` is empty"):
        combined(())


def scam(depth=3, dim=6, channels=(4, 8), **settings):
    torch.manual_seed(0)
    return SCAM(depth, dim, channels, hidden=5, **settings)


OPTIONS = [{}, {"fusion": "last"}, {"pooling": "mean"}, {"stages": "last"}, {"injection": "concat"}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scam_starts_as_the_identity_and_learns_in_all_its_parts(options, seed):
    """Every parameter has influence: its gradient is far above rounding, so none is cancelled (by a softmax, say)."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    features, tokens = [draw(2, 4, 8, 8), draw(2, 8, 4, 4)], draw(2, 3, 7, 6)
    module = scam(**options).double()
    out = module(features, tokens)
    assert all(torch.equal(a, b) for a, b in zip(features, out, strict=True))
    for p in module.parameters():
        p.data = 0.5 * draw(*p.shape)
    module.embed[0].bias.data += 1.0  # hidden units of the ReLU that are alive, whatever the seed
    sum(f.square().sum() for f in module(features, tokens)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in module.parameters())


def test_the_published_start_of_scam_is_random():
    features, tokens = [torch.ones(2, 4, 8, 8), torch.ones(2, 8, 4, 4)], torch.ones(2, 3, 7, 6)
    out = scam(start="random")(features, tokens)
    assert not torch.equal(out[0], features[0])
    assert sum(p.numel() for p in scam(start="random").parameters()) == sum(p.numel() for p in scam().parameters())
    with pytest.raises(ValueError, match="`start` must be one of identity, random"):
        scam(start="zero")


def test_published_tokens_are_the_embedding_and_all_blocks_with_the_last_one_normed():
    """By hand: the blocks one after another, prefix tokens dropped, the final norm on the last map alone."""
    torch.manual_seed(0)
    vfm = load_vfm("vit_tiny_patch16_224", random=True, embedding=True, norm="last")
    image = torch.rand(2, 1, 32, 48)
    found = vfm.tokens(image)
    assert found.shape == (2, 13, 6, 192)
    model = vfm.model
    seen = []
    hooks = [block.register_forward_hook(lambda _, inputs, out: seen.append(out)) for block in model.blocks]
    hooks.append(model.patch_embed.register_forward_hook(lambda _, inputs, out: seen.append(out)))
    normed = load_vfm("vit_tiny_patch16_224", random=True).tokens(image).shape
    assert normed == (2, 12, 6, 192)
    with torch.no_grad():
        final = model.forward_features((image.expand(-1, 3, -1, -1) - vfm.mean) / vfm.std)
    for hook in hooks:
        hook.remove()
    blocks = seen[1:]
    for k in range(11):
        torch.testing.assert_close(found[:, k + 1], blocks[k][:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, 12], final[:, 1:], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="`norm` must be 'all' or 'last'"):
        load_vfm("vit_tiny_patch16_224", random=True, norm="first")


def test_scam_takes_its_options_at_their_word():
    features, tokens = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)], torch.randn(2, 3, 7, 6)
    last = scam(stages="last")
    last.affine.bias.data.fill_(1.0)
    out = last(features, tokens)
    assert torch.equal(out[0], features[0])
    assert not torch.equal(out[1], features[1])
    assert torch.equal(scam(fusion="last", pooling="mean").pool(tokens), tokens[:, -1].mean(1))
    both = scam(injection="concat", strength=0.5)
    both.concat[0].weight.data[:, 4:] = 1.0
    code = both.embed(both.pool(tokens)).sum(1)
    assert torch.allclose(both(features, tokens)[0], features[0] + 0.5 * code[:, None, None, None], atol=1e-6)
    assert float(both.gate_penalty()) == 0.0
    with pytest.raises(ValueError, match="`pooling` must be one of attention, mean"):
        scam(pooling="max")


def test_scam_is_its_formula():
    module = scam(strength=0.3)
    for p in module.parameters():
        p.data.normal_()
    tokens, f = torch.randn(2, 3, 7, 6), [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
    out = module(f, tokens)
    for b in range(2):
        fused = sum(w * tokens[b, k] for k, w in enumerate(module.depth_logits.softmax(0)))
        score = fused @ module.attention.weight[0]
        g = (score.softmax(0)[:, None] * fused).sum(0)
        hidden = torch.relu(module.embed[0].weight @ g + module.embed[0].bias)
        parameters = module.affine.weight @ hidden + module.affine.bias
        for stage, (start, c) in enumerate(((0, 4), (8, 8))):
            raw, beta = parameters[start : start + c], parameters[start + c : start + 2 * c]
            gamma = 1 + torch.tanh(raw * module.gate[stage])
            expected = (1 + 0.3 * (gamma - 1))[:, None, None] * f[stage][b] + 0.3 * beta[:, None, None]
            assert torch.allclose(out[stage][b], expected, atol=1e-5)
    assert float(module.gate_penalty().detach()) == pytest.approx(
        float(torch.cat([u.detach().abs() for u in module.gate]).mean())
    )


def test_scam_names_stages_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(4, 4\) channels; this SCAM was built for \(4, 8\)"):
        scam()([torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)], torch.randn(1, 3, 7, 6))


def make_teacher(name="mlcl", **settings):
    torch.manual_seed(0)
    student = create_student(name, 0.25)
    module = SCAM(2, 6, [s.channels for s in stages_of(student)], hidden=5)
    return Teacher(student, module, **settings)


def batch(n=4):
    g = torch.Generator().manual_seed(0)
    target = (torch.rand(n, 1, 32, 32, generator=g) > 0.98).float()
    image = (torch.randn(n, 1, 32, 32, generator=g) + 3 * target).expand(-1, 3, -1, -1)
    return Batch(image, target, torch.arange(n), torch.randn(n, 2, 9, 6, generator=g))


def test_an_identity_teacher_is_its_student():
    teacher = make_teacher().eval()
    out = teacher(batch().image, batch().tokens)
    assert torch.equal(out.student, out.teacher)


def spread_scam(teacher):
    for p in teacher.adapter.parameters():
        p.data.normal_()


def test_the_teacher_alone_says_what_it_says_beside_its_student():
    teacher = make_teacher().eval()
    spread_scam(teacher)
    out = teacher(batch().image, batch().tokens)
    assert torch.equal(teacher.teach(batch().image, batch().tokens), out.teacher)
    assert not torch.equal(out.student, out.teacher)


def test_batch_norm_statistics_of_both_passes_do_not_mix():
    alone, both = make_teacher("alcl").train(), make_teacher("alcl").train()
    spread_scam(both)
    alone.student(batch().image.expand(-1, 3, -1, -1))
    both(batch().image, batch().tokens)
    for (name, a), b in zip(alone.student.named_buffers(), both.student.buffers(), strict=True):
        assert torch.equal(a, b), name
    changed = [n for n, b in both.statistics.named_buffers() if "top_down" in n and "running_mean" in n and b.any()]
    assert changed  # the teacher's decoder has statistics of its own
    shared = make_teacher("alcl", share_batch_norm=True).train()
    spread_scam(shared)
    shared(batch().image, batch().tokens)
    assert any(not torch.equal(a, b) for a, b in zip(alone.student.buffers(), shared.student.buffers(), strict=True))
    assert len(list(shared.statistics.buffers())) == 0


class Ones(nn.Module):
    def forward(self, indices):
        return torch.ones(len(indices))


def test_the_published_inner_objective_trains_shared_weights_through_the_teacher_only():
    teacher = make_teacher().train()
    spread_scam(teacher)
    b = batch()
    published = TeacherInner(loss="bce", student_loss_weight=0.0)
    out = teacher(b.image, b.tokens)
    expected = (
        binary_cross_entropy(out.teacher, b.target) + 0.1 * distillation(out.teacher, out.student.detach())
    ).mean() + 5e-3 * teacher.adapter.gate_penalty()
    assert float(published(teacher, Ones(), b).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    with_student = TeacherInner(loss="bce", student_loss_weight=1.0)(teacher, Ones(), b)
    extra = binary_cross_entropy(out.student, b.target).mean()
    assert float(with_student.detach()) == pytest.approx(float((expected + extra).detach()), rel=1e-5)


def test_a_share_of_the_batch_passes_through_the_teacher():
    teacher = make_teacher().eval()
    spread_scam(teacher)
    b = batch()
    half = TeacherInner(loss="bce", student_loss_weight=0.0, teacher_share=0.5)(teacher, Ones(), b)
    first = Batch(b.image[:2], b.target[:2], b.index[:2], b.tokens[:2])
    assert float(half.detach()) == pytest.approx(
        float(TeacherInner(loss="bce", student_loss_weight=0.0)(teacher, Ones(), first).detach()), rel=1e-5
    )


class Doubling(nn.Module):
    def forward(self, indices):
        return torch.linspace(0.5, 1.5, len(indices))


def test_the_outer_objective_is_unweighted_unless_published():
    teacher = make_teacher().eval()
    spread_scam(teacher)
    b = batch()
    out = teacher(b.image, b.tokens)
    losses = binary_cross_entropy(out.student, b.target) + distillation(out.student, out.teacher)
    plain = StudentOuter(loss="bce")(teacher, Doubling(), b)
    published = StudentOuter(loss="bce", weighted=True)(teacher, Doubling(), b)
    assert float(plain.detach()) == pytest.approx(float(losses.mean().detach()), rel=1e-5)
    weighted = float((Doubling()(b.index) * losses).mean().detach())
    assert float(published.detach()) == pytest.approx(weighted, rel=1e-5)


def test_weight_zero_is_dropping_the_sample():
    class Drop(nn.Module):
        def forward(self, indices):
            return torch.tensor([2.0, 2.0, 0.0, 0.0])

    student = create_student("mlcl", 0.25).eval()
    b = batch()
    first = Batch(b.image[:2], b.target[:2], b.index[:2], None)
    assert float(Segmentation()(student, Drop(), b).detach()) == pytest.approx(
        float(Segmentation()(student, Ones(), first).detach()), rel=1e-5
    )


def test_the_frozen_model_stays_in_eval_mode_and_gives_one_map_per_block():
    vfm = load_vfm(TINY, random=True)
    nn.Sequential(vfm).train()
    assert not any(m.training for m in vfm.modules())
    assert not any(p.requires_grad for p in vfm.parameters())
    assert not vfm.pretrained
    x = torch.rand(2, 1, 50, 70)
    tokens = vfm.tokens(x)
    assert tokens.shape == (2, 12, 4 * 5, 192)
    assert torch.equal(tokens, vfm.tokens(x))
    assert load_vfm(TINY, random=True, embedding=True).tokens(x).shape == (2, 13, 20, 192)


def test_dinov3_models_build_and_drop_their_prefix_tokens():
    vfm = load_vfm("vit_small_patch16_dinov3.lvd1689m", random=True, embedding=True)
    assert vfm.tokens(torch.rand(1, 1, 32, 48)).shape == (1, 13, 6, 384)


def test_tokens_are_cached_per_image_or_computed_per_crop():
    vfm = load_vfm(TINY, random=True)
    images = [np.random.default_rng(i).random((40, 56)).astype(np.float32) for i in range(3)]
    cache = image_tokens(vfm, images, 32, torch.device("cpu"), progress=False)
    assert cache.shape == (3, 12, 4, 192)
    looked_up = cached_tokens(cache)(torch.tensor([2, 0]), torch.zeros(2, 1, 8, 8))
    assert torch.allclose(looked_up[0], vfm.tokens(torch.from_numpy(images[2])[None, None], 32)[0], atol=2e-3)
    crops = torch.rand(2, 1, 32, 32)
    assert torch.equal(crop_tokens(vfm)(torch.tensor([0, 1]), crops), vfm.tokens(crops))


def test_weights_from_files_in_both_key_formats(tmp_path):
    name = "vit_small_patch16_dinov3.lvd1689m"
    source = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    state = {k: torch.randn_like(v) * 0.02 for k, v in source.state_dict().items()}
    save_file(state, tmp_path / "timm.safetensors")
    original = {}
    for key, value in state.items():
        key = key.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        original[key] = value
    original["rope_embed.periods"] = torch.ones(16)
    original["mask_token"] = torch.zeros(1, 384)
    torch.save(original, tmp_path / "meta.pth")
    x = torch.rand(1, 1, 32, 32)
    expected = FrozenViT(source, name, True)
    source.load_state_dict(state)
    for file in ("timm.safetensors", "meta.pth"):
        vfm = load_vfm(name, tmp_path / file)
        assert vfm.pretrained
        assert torch.allclose(vfm.tokens(x), expected.tokens(x), atol=1e-5), file


def test_bad_weight_files_are_refused_with_the_ways_out(tmp_path):
    wrong = {k: torch.zeros(3) for k in timm.create_model(TINY).state_dict()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    torch.save(nn.Linear(1, 1), tmp_path / "code.pth")
    torch.save({"a": 1}, tmp_path / "no_tensors.pth")
    files = ("wrong.safetensors", "cut.safetensors", "cut.pth", "code.pth", "no_tensors.pth", "absent.pth")
    for file in files:
        with pytest.raises(VFMWeightsError, match=r"(?s)--vfm-weights FILE.*cache.*--vfm-random"):
            load_vfm(TINY, tmp_path / file)


def test_no_network_stops_with_the_three_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)

    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(VFMWeightsError, match=r"(?s)--vfm-weights FILE.*cache.*--vfm-random"):
        load_vfm("vit_small_plus_patch16_dinov3.lvd1689m")


def test_weights_come_from_the_hubs_cache_without_network(monkeypatch, tmp_path):
    torch.manual_seed(3)
    model = timm.create_model(TINY, num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: str(tmp_path / "model.safetensors"))
    vfm = load_vfm(TINY)
    assert vfm.pretrained
    assert torch.equal(vfm.model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


def test_unknown_and_unsuitable_models_are_named():
    with pytest.raises(ValueError, match="not a timm model"):
        load_vfm("vit_enormous", random=True)
    with pytest.raises(ValueError, match=r"'mixer_s32_224' has no spatial features.*features_only"):
        load_vfm("mixer_s32_224", random=True)
    with pytest.raises(ValueError, match="options of ViTs, and 'resnet18' is none"):
        load_vfm("resnet18", random=True, embedding=True)
    with pytest.raises(ValueError, match="exclude each other"):
        load_vfm(TINY, "file", random=True)
