"""How much work a study is and how much of it is done: training steps, products, points and measures in one unit.

The unit is a forward pass over UNIT images. A backward pass counts as two, a gradient as three; a product as two gradients (with
what it needs kept 1.6 were measured, else 2.5). What is left then takes about as long, a unit, as what was done.
"""

from collections.abc import Callable
from math import ceil

from scripts.study_plan import Run

Report = Callable[[int, bool], None]    # so many units are done; whether that took work
UNIT = 64
BACKWARD, PRODUCT = 2, 6                # in forward passes
MEASURE = 20                            # products that a measure counts for
CLASSES = 10                            # of a batch, where an optimizer's passes go by them


class Part:
    """A part of a run's work: `total` pieces of `weight` units. Exactly their sum is reported once it is done.

    What took no work is reported as such.
    """

    def __init__(self, report: Report, total: int, weight: int = 1):
        self._report, self._left, self.weight = report, total, weight

    @property
    def units(self) -> int:
        """What is left to be reported."""
        return self._left * self.weight

    def work(self, pieces: int = 1) -> None:
        """Report pieces that were worked on."""
        self._count(pieces, True)

    def skip(self, pieces: int) -> None:
        """Report pieces that were done before, or are not needed."""
        self._count(pieces, False)

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.skip(self._left)

    def _count(self, pieces: int, worked: bool) -> None:
        pieces = min(pieces, self._left)
        self._left -= pieces
        if pieces:
            self._report(pieces * self.weight, worked)


class Work:
    """The parts of one run over so many training images."""

    def __init__(self, run: Run, num_images: int, report: Report = lambda units, worked: None):
        self.run, self.num_images, self.report = run, num_images, report

    @property
    def units(self) -> int:
        """The whole work: the total of a study's progress is the sum of its runs'."""
        run = self.run
        surfaces = sum(self.surface(settings).units for _, _, settings in run.surfaces)
        spectra = len(run.spectrum_epochs) * len(run.groups) * self.spectrum().units
        return self.training().units + spectra + surfaces + len(run.measures) * self.measure().units

    def training(self) -> Part:
        """Steps: forwards and backwards of the optimizer over a batch."""
        from landscape.data.batches import batch_sizes
        from landscape.data.views import NUM_VIEWS
        from landscape.losses import needs_views
        config = self.run.config
        steps = config.epochs * len(batch_sizes(self.num_images, config.batch_size))
        steps = steps if config.max_steps is None else min(steps, config.max_steps)
        images = min(config.batch_size, self.num_images) * (NUM_VIEWS if needs_views(config.loss) else 1)
        return Part(self.report, steps, _weight(passes_of_a_step(config) * images))

    def spectrum(self) -> Part:
        """Products: of a group, whose size is taken to be an equal share, or the asked one."""
        images = _subset(self.run.spectrum.max_samples, self.num_images / len(self.run.groups))
        return Part(self.report, self.run.spectrum.products, _weight(PRODUCT * images))

    def surface(self, settings) -> Part:
        """Points: a forward pass over all images, or the asked ones of head and of tail."""
        images = 2 * _subset(settings.max_samples, self.num_images / 2)
        return Part(self.report, settings.points ** settings.dims, _weight(images))

    def measure(self) -> Part:
        """One piece."""
        return Part(self.report, 1, MEASURE * self.spectrum().weight)


def passes_of_a_step(config) -> float:
    """Return forward passes over a batch that take as long as one training step, the mean over an optimizer's stages."""
    from landscape.family import method
    from landscape.optimizers.building import hyperparameters
    asked, rows = hyperparameters(config.opt) | config.as_dict() | config.opt_options, method(config.opt).passes
    fitting = [row for row in rows if all(asked.get(key) == value for key, value in row.options.items())]
    rows = [row for row in fitting if row.options] or fitting or rows       # what has options is nearer than what has none
    counts = [row.of(CLASSES) for row in rows]
    return sum(forwards + BACKWARD * backwards for forwards, backwards in counts) / len(counts)


def _subset(asked: int | None, available: float) -> float:
    return available if asked is None else min(asked, available)


def _weight(images: float) -> int:
    return max(1, ceil(images / UNIT))
