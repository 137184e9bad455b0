"""Small networks that defeat careless Hessian-vector products, and their dense Hessians by autograd."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.parameters import trainable


class InPlaceResidual(nn.Module):
    """BatchNorm, `out += x`, slice assignment and an in-place activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(32, 3)
        self.act = nn.GELU()
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x
        out[:, 0] = out[:, 0] * 2
        return self.head(F.silu(out, inplace=True).flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, 0, :2])[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0]).mean(1))


class Shared(nn.Module):
    """A weight used twice, another frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False), nn.Linear(16, 3)
        self.second.weight = self.first.weight
        self.first.weight = self.second.weight
        self.head.weight.requires_grad_(False)
        self.first.weight.data *= 0.3

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Cube(torch.autograd.Function):
    """A custom function in the old style: no forward mode, no functional transforms."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x ** 3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(self.head(x.flatten(1)))


class Checkpointed(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(lambda z: torch.tanh(self.head(z)), x.flatten(1), use_reentrant=False)


class ReentrantlyCheckpointed(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(lambda z: torch.tanh(self.head(z)), x.flatten(1), use_reentrant=True)


class ModernCube(torch.autograd.Function):
    """A custom function in the new style, with forward mode, for functional transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x ** 3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


class ModernCustom(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return ModernCube.apply(self.head(x.flatten(1)))


class FalseCube(Cube):
    """A custom function whose backward is not its derivative."""

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] ** 2 * gradient


class FalseCustom(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return FalseCube.apply(self.head(x.flatten(1)))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, one block of attention with dropout, in-place residual sums."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, 2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 5, 4))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.1), nn.Linear(6, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)                              # (B, 4, 4)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        z = self.norms[0](x)
        out = self.attention(z, z, z, need_weights=False)[0]
        out += x
        x = self.mlp(self.norms[1](out))
        x += out
        return self.head(x[:, 0])


class Masked(Custom):
    """`no_grad` around what does not depend on the parameters changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.flatten(1).abs().mean(1, keepdim=True)
        return torch.tanh(self.head(x.flatten(1) / scale))


class BranchOnSample(nn.Module):
    """Each sample takes a way of its own, which a trace of one batch would freeze."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.tanh(self.left(row)) if self.right(row)[0] > 0 else self.right(row) ** 2
                            for row in x.flatten(1)])


class Counting(Custom):
    """Writes into a buffer in evaluation mode too, which changes nothing yet."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.head(x.flatten(1)))


class Narrow(Custom):
    """Computes its logits in float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(x.flatten(1)).float())


class StopGradient(Custom):
    """What autograd differentiates is not the loss: there is no right product."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(x.flatten(1))
        with torch.no_grad():
            gate = torch.sigmoid(out)
        return out * gate


class Detached(Custom):
    """Every engine agrees, and all are wrong: the detached factor is no constant of the loss."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(x.flatten(1))
        return out * torch.sigmoid(out).detach()


class BranchOnBatch(Custom):
    def forward(self, x: Tensor) -> Tensor:
        out = self.head(x.flatten(1))
        return out ** 2 if out[0, 0] > 0 else out


class AlwaysDropout(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.head(x.flatten(1)))


EXACT = (InPlaceResidual, Recurrent, Attention, VisionTransformer, Shared, Custom, ModernCustom, Checkpointed, Masked,
         BranchOnSample)


def make(kind: type[nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a network of one kind, seeded, in training mode as a user would hold it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().to(dtype)


def images(count: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return inputs (count, 1, 4, 4) and targets (count,) of three classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 4, 4, generator=generator, dtype=dtype)
    return x, torch.randint(3, (count,), generator=generator)


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the Hessian (d, d) of the mean loss, row by row, reverse over reverse on the module itself."""
    parameters, modes = list(trainable(model).values()), [(m, m.training) for m in model.modules()]
    model.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.autograd.grad(losses(model(x), y).mean(), parameters, create_graph=True)
    torch.backends.mha.set_fastpath_enabled(fast)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in flat]
    for module, mode in modes:
        module.training = mode
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
