"""How much a command would compute, how long that takes and how much memory: measured on a small piece of the work itself.

    of_spectra(subject, groups, settings, making)   products of one microbatch of the largest and of the smallest group
    of_surfaces(subject, settings, surfaces)        the forward pass of one batch
    of_gradients(subject, settings, images)         the gradient of one batch
    of_training(config, data)                       a few steps

Times are scaled by the number of images, products, points and steps. Limits count as reached, so spectra may end sooner.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

TRAINING_STEPS = 5


@dataclass(frozen=True)
class Forecast:
    """What work there is, by unit, and what it takes."""

    counts: dict[str, int]      # such as {"products": 560, "points": 441}
    seconds: float
    bytes: float
    device: str
    details: dict[str, Any] = field(default_factory=dict)   # more for `--json`

    def __add__(self, other: "Forecast") -> "Forecast":
        names = dict.fromkeys([*self.counts, *other.counts])
        counts = {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names}
        return Forecast(counts, self.seconds + other.seconds, max(self.bytes, other.bytes), self.device,
                        self.details | other.details)

    def times(self, count: int) -> "Forecast":
        """Return the forecast of `count` such pieces of work, one after the other."""
        return replace(self, counts={name: count * number for name, number in self.counts.items()},
                       seconds=count * self.seconds)

    def shared(self, workers: int) -> "Forecast":
        """Return the forecast where so many processes share the work."""
        return replace(self, seconds=self.seconds / workers, bytes=self.bytes * workers)

    @property
    def line(self) -> str:
        """The forecast as one line for people."""
        work = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        engine = f", engine {self.details['engine']}" if "engine" in self.details else ""
        return f"forecast: at most {work}, {in_words(self.seconds)} and {self.bytes / 2**30:.2f} GiB on {self.device}{engine}"

    @property
    def document(self) -> dict[str, Any]:
        """The forecast as plain values."""
        return {**self.counts, "minutes": self.seconds / 60, "gigabytes": self.bytes / 2**30, "device": self.device,
                **self.details}


def in_words(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 90:
        return f"{seconds:.1f} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def of_spectra(subject, groups: Sequence[str], settings, making, tell: Callable[[str], None] = lambda text: None) -> Forecast:
    """Time products of one microbatch of the largest and of the smallest group; those between lie on a line.

    groups: of each spectrum. `tell` is told what begins.
    """
    from analysis.operators.memory import budget
    from analysis.subject import group_images
    if not groups:
        return Forecast({"products": 0}, 0.0, _memory_now(subject.device), str(subject.device), {"spectra": 0})
    sizes = {group: len(group_images(subject, group, settings)[0]) for group in dict.fromkeys(groups)}
    ends = {sizes[group]: group for group in (max(sizes, key=sizes.get), min(sizes, key=sizes.get))}
    timings = [_Timing.of(subject, group, settings, making, tell) for _, group in sorted(ends.items())]
    small, large = timings[0], timings[-1]
    free, products = budget(making.memory, subject.device), settings.products
    seconds = {group: _spectrum_seconds(size, small, large, products, free) for group, size in sizes.items()}
    kept = min(free, large.bytes * max(sizes.values()) / large.samples)
    vectors = 2 * settings.num_probes * (settings.num_matvecs + 1) + 8 * settings.num_pairs
    return Forecast({"products": products * len(groups)},
                    sum(timing.once for timing in timings) + sum(seconds[group] for group in groups),
                    _memory_now(subject.device) + kept + vectors * large.vector_bytes, str(subject.device),
                    {"engine": large.engine, "spectra": len(groups)})


def of_surfaces(subject, surfaces: Sequence) -> Forecast:
    """Time the forward pass of one batch, for surfaces of given settings."""
    from analysis.subject import surface_batches
    total = Forecast({"points": 0}, 0.0, _memory_now(subject.device), str(subject.device))
    for settings in surfaces:
        batches, points = surface_batches(subject, settings), settings.points ** settings.dims
        largest = max((images for images, _ in batches), key=len)
        passes = 1 + (settings.batchnorm == "recalibrated")
        each = passes * _forward_seconds(subject, largest, settings.dtype) / len(largest) * sum(len(y) for _, y in batches)
        held = sum(images.nbytes for images, _ in batches)
        total += Forecast({"points": points}, points * each, total.bytes + held, str(subject.device))
    return total


def of_gradients(subject, settings, images: int) -> Forecast:
    """Time the gradient of one batch, for that of so many images."""
    from analysis.measures.similarity import mean_gradient
    from analysis.subject import group_batches
    batch = group_batches(subject, "all", settings)[0][:1]
    model, loss = subject.cast(settings.dtype), subject.loss("CE")
    seconds = min(_timed(lambda: mean_gradient(model, loss, batch), subject.device)[0] for _ in range(2)) / len(batch[0][1])
    return Forecast({"image gradients": images}, images * seconds, _memory_now(subject.device), str(subject.device))


def of_training(config, data) -> Forecast:
    """Time a few steps; the first is left out, since it sets things up."""
    from landscape.data.batches import batch_sizes
    from landscape.training import choose_device, train
    times = [time.perf_counter()]
    result = train(replace(config, max_steps=TRAINING_STEPS), data=data, on_step=lambda steps: times.append(time.perf_counter()))
    seconds = (times[-1] - times[min(1, len(times) - 2)]) / max(len(times) - 2, 1)
    steps = config.epochs * len(batch_sizes(len(data.train), config.batch_size))
    steps = steps if config.max_steps is None else min(steps, config.max_steps)
    size = sum(p.numel() * p.element_size() for p in result.model.parameters())
    device = choose_device(config.device)
    return Forecast({"steps": steps}, steps * seconds, _memory_now(device), str(device),
                    {"seconds_per_step": seconds, "checkpoint_bytes": size, "checkpoints": len(config.kept_epochs())})


@dataclass(frozen=True)
class _Timing:
    """What one microbatch of a group takes."""

    samples: int
    once: float         # seconds for what later operators share: tracing, choosing
    setup: float        # seconds to build an operator
    fresh: float        # seconds for the product of one vector, what does not depend on it computed anew for each block
    kept: float         # seconds for the product of one vector where all that does not depend on it was kept
    bytes: float        # that it keeps
    vector_bytes: int
    engine: str

    @classmethod
    def of(cls, subject, group: str, settings, making, tell: Callable[[str], None]) -> "_Timing":
        import torch

        from analysis.pipeline import build_operator
        from analysis.subject import group_batches
        whole = group_batches(subject, group, settings)[0]
        batch, share = whole[:1], len(whole[0][1]) / sum(len(labels) for _, labels in whole)
        tell(f"{group}: tracing and checking products (once)")
        first, _ = _timed(lambda: build_operator(subject, batch, settings, making, share=share), subject.device)
        setup, operator = _timed(lambda: build_operator(subject, batch, settings, making, share=share), subject.device)
        tell(f"{group}: timing products of {len(batch[0][1])} images")
        block = torch.ones(settings.num_probes, operator.size, dtype=operator.dtype, device=operator.device)
        operator.release()      # what its checks have kept
        fresh, kept = (_timed(lambda: operator.matmat(block), subject.device)[0] / len(block) for _ in range(2))
        return cls(len(batch[0][1]), max(first - setup, 0.0), setup, fresh, min(fresh, kept), operator.held_bytes,
                   block[0].nbytes, operator.engine)


def _spectrum_seconds(size: int, small: _Timing, large: _Timing, products: int, free: float) -> float:
    """Return the seconds of one spectrum over `size` samples."""
    kept = min(1.0, free / max(large.bytes * size / large.samples, 1.0))
    each = kept * _scaled(size, small, large, "kept") + (1 - kept) * _scaled(size, small, large, "fresh")
    return _scaled(size, small, large, "setup") + products * each


def _scaled(size: int, small: _Timing, large: _Timing, name: str) -> float:
    low, high = getattr(small, name), getattr(large, name)
    if size >= large.samples or small.samples == large.samples:
        return high * max(1, size / large.samples)
    return low + (high - low) * (size - small.samples) / (large.samples - small.samples)


def _forward_seconds(subject, images, dtype: str) -> float:
    import torch

    from analysis.surfaces.forward import build_forward
    from landscape.batchnorm import evaluation_mode
    model = subject.cast(dtype)
    with torch.no_grad(), evaluation_mode(model):
        forward = build_forward(model, images=[images[:8]], precision=dtype if dtype == "bfloat16" else None)
        pieces = forward.pieces(images)
        return min(_timed(lambda: [forward(piece) for piece in pieces], images.device)[0] for _ in range(2))


def _timed(action: Callable[[], Any], device) -> tuple[float, Any]:
    from analysis.operators.rounds import timed
    return timed(action, device)


def _memory_now(device) -> float:
    """Return the most memory that this process has taken so far: the program and the data are part of any forecast."""
    import torch
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
