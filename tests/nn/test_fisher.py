import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from mi_audit.core.errors import ConfigError, OutOfMemory
from mi_audit.core.run import Run
from mi_audit.nn import fisher
from mi_audit.nn.classifier import Classifier
from tests.nn.test_anatomy import plain_cnn


def linear():
    """Two features, three classes: logits W x + b with small numbers."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]))
        net[1].bias.copy_(torch.tensor([0.1, -0.2, 0.0]))
    return net


IMAGES = torch.tensor([[0.2, 0.6], [0.9, 0.1], [0.5, 0.5]]).view(3, 1, 1, 2)
LABELS = torch.tensor([1, 0, 2])


def closed_form(labels_of):
    """d CE / d W_kj = (p_k - y_k) x_j and d CE / d b_k = p_k - y_k, so the sums of squares factorise."""
    net, plain, scaled = linear(), [], []
    for image, given in zip(IMAGES, labels_of, strict=True):
        x = image.flatten().double()
        p = (net[1].weight.double() @ x + net[1].bias.double()).softmax(0).detach()
        one, other = 0.0, 0.0
        for label, chance in given(p):
            slope = p - F.one_hot(torch.tensor(label), 3)
            gradient = torch.outer(slope, x)
            one += chance * (gradient.square().sum() + slope.square().sum())
            other += chance * (
                (gradient * net[1].weight.double()).square().sum() + (slope * net[1].bias.double()).square().sum()
            )
        plain.append(float(one))
        scaled.append(float(torch.as_tensor(other).detach()))
    return torch.tensor(plain), torch.tensor(scaled)


def test_empirical_of_softmax_regression_as_solved_by_hand():
    net = linear()
    found = fisher.empirical(net, IMAGES, LABELS, fisher.parts(net, IMAGES))
    plain, scaled = closed_form([lambda _p, label=label: [(label, 1.0)] for label in LABELS.tolist()])
    assert found.plain.shape == (3, 1)
    torch.testing.assert_close(found.plain[:, 0].float(), plain, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.scaled[:, 0].float(), scaled, rtol=1e-5, atol=1e-7)


def test_one_image_of_two_classes_with_round_numbers():
    # logits 0, 0: p = (1/2, 1/2), slope (-1/2, 1/2); x = (1, 0): gradient squares 1/4 + 1/4, bias 1/4 + 1/4
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    nn.init.zeros_(net[1].weight), nn.init.zeros_(net[1].bias)
    image = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    found = fisher.empirical(net, image, torch.tensor([0]), fisher.parts(net, image))
    assert found.plain.item() == pytest.approx(1.0) and found.scaled.item() == 0


def test_expected_is_the_closed_form_of_softmax_regression():
    # sum_k p_k |p - e_k|^2 (|x|^2 + 1)
    net = linear()
    found = fisher.expected(net, IMAGES, fisher.parts(net, IMAGES))
    plain, scaled = closed_form([lambda p: list(enumerate(p.tolist()))] * 3)
    torch.testing.assert_close(found.plain[:, 0].float(), plain, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.scaled[:, 0].float(), scaled, rtol=1e-5, atol=1e-7)


def test_sampled_approaches_the_expectation_and_depends_on_the_generator_alone():
    net = linear()
    many = IMAGES[:1].expand(4000, -1, -1, -1)
    rows = fisher.parts(net, IMAGES)

    def drawn(count, batch):
        return fisher.sampled(net, many[:count], rows, torch.Generator().manual_seed(7), Run(batch_size=batch)).plain

    torch.testing.assert_close(drawn(300, 64), drawn(300, 9))
    draw = drawn(4000, 64)
    exact = fisher.expected(net, IMAGES[:1], rows).plain
    assert float(draw.mean()) == pytest.approx(float(exact.mean()), rel=0.05)
    assert draw.unique().numel() > 1


def test_scaled_does_not_change_when_a_layer_is_rescaled():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    images, labels = torch.rand(4, 1, 2, 3), torch.tensor([0, 1, 2, 0])
    rows = fisher.parts(net, images)
    before = fisher.empirical(net, images, labels, rows)
    with torch.no_grad():  # the same function: the ReLU is homogeneous
        net[1].weight.mul_(4), net[1].bias.mul_(4), net[3].weight.div_(4)
    after = fisher.empirical(net, images, labels, rows)
    torch.testing.assert_close(before.scaled, after.scaled, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(before.plain[:, 0], after.plain[:, 0], rtol=0.1)


def conv_with_norms():
    torch.manual_seed(0)
    net = plain_cnn(depth=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2), module.running_var.uniform_(0.5, 2)
    return Classifier(net, size=8, channels=3, mean=(0.5,), std=(0.5,)), 8


def vit():
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4
    )
    nn.init.normal_(net.heads.head.weight, std=0.2)
    return Classifier(net, size=16, channels=3, mean=(0.5,), std=(0.5,)), 16


def timm_vit():
    torch.manual_seed(0)
    net = timm.models.VisionTransformer(
        img_size=16, patch_size=8, depth=2, num_heads=2, embed_dim=16, mlp_ratio=2, num_classes=4
    )
    return Classifier(net, size=16, channels=3, mean=(0.5,), std=(0.5,)), 16


@pytest.mark.parametrize("build", [conv_with_norms, vit, timm_vit])
def test_equals_a_loop_of_single_images_whatever_the_chunk(build):
    net, size = build()
    images, labels = torch.rand(5, 3, size, size), torch.tensor([0, 1, 2, 3, 0])
    rows = fisher.parts(net, images)
    net.train()
    wanted = [_by_hand(net, images[i : i + 1], labels[i : i + 1], rows) for i in range(5)]
    for chunk in (1, 2, 5):
        found = fisher.empirical(net, images, labels, rows, Run(batch_size=chunk))
        torch.testing.assert_close(found.plain.float(), torch.stack(wanted), rtol=1e-4, atol=1e-8)
    assert net.training and net.net.training  # left as it was
    assert (found.plain > 0).all()


def _by_hand(net, image, label, rows):
    """Plain autograd, one image, in eval mode."""
    modes = {module: module.training for module in net.modules()}
    net.eval().requires_grad_(True)
    net.zero_grad()
    F.cross_entropy(net(image), label).backward()
    sums = torch.stack([sum(net.get_parameter(n).grad.square().sum() for n in row.parameters) for row in rows])
    for module, mode in modes.items():
        module.training = mode
    return sums


def test_looks_at_frozen_weights_and_leaves_no_gradient_behind():
    net, _ = conv_with_norms()
    net.requires_grad_(False)
    images = torch.rand(2, 3, 8, 8)
    found = fisher.empirical(net, images, torch.tensor([0, 1]), fisher.parts(net, images))
    assert (found.plain > 0).all() and all(parameter.grad is None for parameter in net.parameters())


def test_does_not_touch_the_statistics_of_batch_norms():
    net, _ = conv_with_norms()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.train()
    images = torch.rand(4, 3, 8, 8)
    fisher.empirical(net, images, torch.tensor([0, 1, 2, 3]), fisher.parts(net, images))
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_the_head_is_the_last_row_and_takes_what_follows_the_last_unit():
    net, size = vit()
    rows = fisher.parts(net, torch.zeros(1, 3, size, size))
    assert [row.kind for row in rows] == ["EncoderBlock", "EncoderBlock", "Linear"]
    assert rows[-1].name == "net.heads.head" and rows[-1].stage == ""
    assert {"net.encoder.ln.weight", "net.heads.head.bias"} <= set(rows[-1].parameters)
    assert sum(row.size for row in rows) == sum(parameter.numel() for parameter in net.parameters())


class Peeking(nn.Module):
    """Looks at values on the way, which cannot be vectorised."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, images):
        flat = images.flatten(1)
        return self.line(flat * 2 if flat.sum().item() > 2 else flat)


def test_a_network_that_cannot_be_vectorised_is_asked_image_by_image():
    torch.manual_seed(0)
    net, images, labels = Peeking(), torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])
    images[0] = 0.9
    rows = fisher.parts(net, images)
    found = fisher.empirical(net, images, labels, rows)
    wanted = [_by_hand(net, images[i : i + 1], labels[i : i + 1], rows) for i in range(4)]
    torch.testing.assert_close(found.plain.float(), torch.stack(wanted), rtol=1e-4, atol=1e-8)


def test_halves_the_chunk_when_memory_runs_out(monkeypatch):
    net = linear()
    rows, wanted = fisher.parts(net, IMAGES), fisher.empirical(net, IMAGES, LABELS, fisher.parts(net, IMAGES))
    whole, asked = fisher._squares, []

    def small(model, weights, images, labels, rows):
        asked.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("too much")
        return whole(model, weights, images, labels, rows)

    monkeypatch.setattr(fisher, "_squares", small)
    found = fisher.empirical(net, IMAGES, LABELS, rows, Run(batch_size=3))
    assert asked == [3, 1, 1, 1]
    torch.testing.assert_close(found.plain, wanted.plain)
    monkeypatch.setattr(fisher, "_squares", lambda *_given: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(OutOfMemory):
        fisher.empirical(net, IMAGES, LABELS, rows, Run(batch_size=2))


def test_other_errors_are_not_swallowed():
    net = linear()
    with pytest.raises((RuntimeError, IndexError), match=r"out of bounds"):
        fisher.empirical(net, IMAGES, torch.tensor([0, 1, 9]), fisher.parts(net, IMAGES))


def test_refuses_half_precision():
    net = linear().half()
    with pytest.raises(ConfigError, match="expected weights in single precision"):
        fisher.empirical(net, IMAGES, LABELS, ())


def test_the_chunk_fits_the_network():
    assert fisher.chunk_of(linear()) == fisher.LARGEST
    with torch.device("meta"):
        assert fisher.chunk_of(nn.Linear(4096, 4096)) == 7  # 512 MiB / (64 MiB + 16 KiB)
        assert fisher.chunk_of(nn.Linear(20_000, 20_000)) == 1


def test_faint_gradients_have_squares_too():
    """Two parameters with gradients of 3e-30 and 4e-30: squares of 9e-60 and 16e-60, far below single precision."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[68.0], [0.0]]))  # exp(-68) = 2.9e-30
    rows = fisher.parts(net, torch.zeros(1, 1, 1, 1))
    found = fisher.empirical(net, torch.ones(1, 1, 1, 1), torch.tensor([0]), rows).plain
    slope = float(torch.tensor(-68.0).double().exp())  # p of the other class, the gradient of its weight
    assert float(found.sum()) > slope**2 / 2 and float(found.sum()) < 3 * slope**2
