"""Networks whose state_dict is laid out as two releases lay it out, written independently of `landscape.models`.

    sse_sam(...)    SSE-SAM: a resnet34 of 3x3 stem inside `encoder`, shortcuts `downsample`, head `fc`; the file is the bare
                    state_dict
    saddle(...)     Saddle-LongTail: the CIFAR resnet32, padding shortcuts without state, head `linear`, for LDAM a cosine
                    head stored (features, classes); the file is a dictionary, under DataParallel with names `module.*`
"""

import torch
from torch import nn
from torch.nn import functional as F


def sse_sam(num_classes):
    encoder = Net((3, 4, 6, 3), (64, 128, 256, 512), "downsample")
    encoder.fc = nn.Linear(512, num_classes)
    outer = Encoder()
    outer.encoder = encoder
    return perturbed(outer)


def saddle(num_classes, cosine):
    net = Net((5, 5, 5), (16, 32, 64), None)
    net.linear = Normed(64, num_classes) if cosine else nn.Linear(64, num_classes)
    return perturbed(net)


def saddle_file(model, epoch, parallel=True):
    """Return what its training script stores."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    model = nn.DataParallel(model) if parallel else model
    return {"epoch": epoch, "arch": "resnet32", "state_dict": model.state_dict(), "best_acc1": torch.tensor(42.5),
            "optimizer": optimizer.state_dict()}


class Normed(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, classes))

    def forward(self, x):
        return (x / x.norm(dim=1, keepdim=True)) @ (self.weight / self.weight.norm(dim=0))


class Encoder(nn.Module):
    def forward(self, x):
        return self.encoder(x)


class Net(nn.Module):
    def __init__(self, depths, widths, projection):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        self.num_stages, before = len(depths), widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths), 1):
            strides = [1 if stage == 1 else 2] + [1] * (depth - 1)
            blocks = [Block(before if i == 0 else width, width, stride, projection) for i, stride in enumerate(strides)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = width

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        x = F.avg_pool2d(x, x.shape[-1]).flatten(1)
        return (self.fc if hasattr(self, "fc") else self.linear)(x)


class Block(nn.Module):
    def __init__(self, before, width, stride, projection):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.padding = width - before
        if projection and (stride > 1 or self.padding):
            setattr(self, projection, nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)))

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.padding:
            zeros = torch.zeros(len(x), self.padding // 2, *out.shape[2:], dtype=x.dtype)
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
        return (out + x).relu()


def perturbed(model):
    """Give BatchNorm statistics of its own to every layer, so that a swapped buffer shows."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(17)
        else:
            buffer.copy_(buffer + 0.3 * torch.rand(buffer.shape, generator=generator))
    return model.eval()
