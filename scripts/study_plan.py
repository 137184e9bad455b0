"""What a study computes: methods, seeds, spectra, surfaces, figures; read from TOML, checked before anything runs.

    name = "digits"            [train]        settings that all runs share
    seeds = [0, 1, 2]          [methods.sam]  what sets one method apart; one table a method, `opt` names its optimizer
    workers = 0                [spectrum]     groups, epochs and the settings of `landscape spectrum`
    vary = ["loss"]                           (settings that tell methods of one optimizer apart)
                               [[surfaces]]   epoch, seeds and the settings of `landscape surface`; any number of them
                               [measures]     names, epochs, seeds and the settings of `landscape measure`
                               [figures]      names, format, dpi; page = false for no report.html
"""

import difflib
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tomli_w

from analysis.measures.catalogue import MEASURES
from analysis.settings import MeasureSettings, SpectrumSettings, SurfaceSettings, surface_name
from checkpoints.errors import RecordError
from checkpoints.layout import check_name
from checkpoints.variants import check_vary, variants
from figures.catalogue import CATALOGUE
from landscape.configuration import TrainConfig
from landscape.errors import InputError
from landscape.recipes import filled
from landscape.settings import check_seed
from scripts.study_presets import PRESETS

PLACE = ("name", "epoch", "epochs", "seeds", "groups")      # keys of [spectrum] and [[surfaces]] that say where, not how
# A study compares whole Hessians of training images: test images, blocks of parameters and other operators, which are stored
# under names of their own, are for `landscape spectrum`.
WHOLE_SPECTRA = tuple(f.name for f in fields(SpectrumSettings) if f.name not in ("split", "params", "operator"))
FORMATS = ("png", "pdf", "svg")
GROUPS = re.compile(r"all|head|tail|many|medium|few|class:\d+")


@dataclass(frozen=True)
class Run:
    """One training run of a study, and what is computed of it."""

    name: str
    config: TrainConfig
    groups: tuple[str, ...]
    spectrum_epochs: tuple[int, ...]
    spectrum: SpectrumSettings
    surfaces: tuple[tuple[str, int, SurfaceSettings], ...]      # name, epoch, how
    measures: tuple[tuple[str, int], ...] = ()                  # name, epoch; 0 where it is of no checkpoint
    measure: MeasureSettings = MeasureSettings()


@dataclass(frozen=True)
class Study:
    """A study as it was written; `runs()` is the work."""

    name: str
    train: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    seeds: tuple[int, ...] = (0,)
    spectrum: dict[str, Any] = field(default_factory=dict)
    surfaces: tuple[dict[str, Any], ...] = ()
    measures: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    workers: int = 0            # processes; 0: one for each core, one on a GPU
    vary: tuple[str, ...] = ()  # settings that tell methods of one optimizer apart, as in `landscape figures --vary`

    @classmethod
    def read(cls, source: str) -> "Study":
        """Read a preset by name, or a TOML file by path."""
        if source in PRESETS:
            return cls.from_dict(PRESETS[source])
        path = Path(source)
        if not path.is_file():
            raise InputError(f"study {source!r} is neither a preset ({', '.join(PRESETS)}) nor a file: write one from "
                             "`landscape study digits --print-config`")
        try:
            return cls.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no TOML: {' '.join(str(error).split())}") from error

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Study":
        """Check the keys of a document and build every setting once, so that a mistake shows before anything runs."""
        _known("a study", document, [f.name for f in fields(cls)])
        for name, kind in (("name", str), ("train", dict), ("methods", dict)):
            if not isinstance(document.get(name), kind) or not document[name]:
                raise InputError(f"a study needs {name}: see `landscape study digits --print-config`")
        study = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in document.items()})
        study._check()
        return study

    def as_toml(self) -> str:
        """Return the study as a TOML document."""
        document = {f.name: getattr(self, f.name) for f in fields(self)}
        return tomli_w.dumps({name: list(value) if isinstance(value, tuple) else value for name, value in document.items()})

    def runs(self) -> list[Run]:
        """Return every run: all methods of the first seed, then of the second, so that seeds complete one by one."""
        return [self._run(method, seed) for seed in self.seeds for method in self.methods]

    def _run(self, method: str, seed: int) -> Run:
        spectrum = {key: value for key, value in self.spectrum.items() if key not in PLACE}
        surfaces = [entry for entry in self.surfaces if seed in entry.get("seeds", self.seeds)]
        settings = filled({**self.train, **self.methods[method], "seed": seed})
        asked = TrainConfig.from_dict(settings)
        last = asked.epochs
        epochs = tuple(sorted(set(self.spectrum.get("epochs", [last]))))
        places = tuple(_place(entry, entry.get("epoch", last)) for entry in surfaces)
        measures = self._measures(seed, epochs)
        read = {epoch for name, epoch in measures if MEASURES[name].at_checkpoint}
        passed = {passed for _, epoch, how in places for passed in (epoch, *how.epochs)}
        kept = sorted({*asked.kept_epochs(), *epochs, *passed, *read})
        config = TrainConfig.from_dict({**settings, "checkpoint_epochs": kept})
        groups = tuple(self.spectrum.get("groups", ("head", "tail")))
        measure = MeasureSettings(**{key: value for key, value in self.measures.items() if key not in ("names", *PLACE)})
        return Run(f"{method}-seed{seed}", config, groups, epochs, SpectrumSettings(**spectrum), places, measures,
                   replace(measure, groups=groups))

    def _measures(self, seed: int, epochs: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
        """Return name and epoch of each measure of one seed's runs: at the epochs of the spectra, unless others are given."""
        if seed not in self.measures.get("seeds", self.seeds):
            return ()
        names, epochs = self.measures.get("names", ()), self.measures.get("epochs", epochs)
        return tuple((name, epoch) for name in names for epoch in (epochs if MEASURES[name].at_checkpoint else (0,)))

    def _check(self) -> None:
        for name in (self.name, *self.methods):
            check_name(name)
        _known("[spectrum]", self.spectrum, [*WHOLE_SPECTRA, "epochs", "groups"])
        for entry in self.surfaces:
            _known("[[surfaces]]", entry, [f.name for f in fields(SurfaceSettings)] + ["name", "epoch", "seeds"])
            _lists("[[surfaces]]", entry, seeds=int)
        _known("[measures]", self.measures, [f.name for f in fields(MeasureSettings)] + ["names", "epochs", "seeds"])
        _lists("[measures]", self.measures, names=str, epochs=int, seeds=int)
        _known("[measures] names", dict.fromkeys(self.measures.get("names", ())), tuple(MEASURES))
        _known("[figures]", self.figures, ["names", "format", "dpi", "page"])
        _lists("[spectrum]", self.spectrum, epochs=int, groups=str)
        _lists("[figures]", self.figures, names=str, format=str)
        for key, choices in (("names", tuple(CATALOGUE)), ("format", FORMATS)):
            for name in self.figures.get(key, ()):
                _known(f"[figures] {key}", {name: None}, choices)
        for group in self.spectrum.get("groups", ()):
            if not GROUPS.fullmatch(group):
                raise InputError(f"[spectrum] group {group!r} is unknown: expected all, head, tail, many, medium, few "
                                 "or class:N")
        if not isinstance(self.figures.get("dpi", 200), int) or not 50 <= self.figures.get("dpi", 200) <= 1200:
            raise InputError(f"[figures] dpi={self.figures['dpi']!r} is out of range: expected 50 <= dpi <= 1200")
        if not isinstance(self.figures.get("page", True), bool):
            raise InputError(f"[figures] page={self.figures['page']!r} is out of range: expected true or false")
        whole = isinstance(self.seeds, tuple) and all(isinstance(seed, int) and seed >= 0 for seed in self.seeds)
        if not (whole and self.seeds):
            raise InputError(f"seeds={self.seeds!r} is out of range: expected a list of integers >= 0, one a run")
        if not isinstance(self.workers, int) or self.workers < 0:
            raise InputError(f"workers={self.workers} is out of range: expected processes, or 0 for one each core")
        for document in (self.spectrum, *self.surfaces, self.measures):
            check_seed(document.get("seed"))
        for run in self.runs():
            _check_surfaces(run)
            _check_measures(run)
        self._check_apart()

    def _check_apart(self) -> None:
        """See that every method makes a pool of its own: figures pool the runs of one optimizer."""
        if any(not isinstance(key, str) for key in self.vary):
            raise InputError(f"vary={list(self.vary)!r} is out of range: expected settings such as loss")
        members = [SimpleNamespace(method=method, config=run.config.as_dict())
                   for method, run in zip(self.methods, self.runs())]
        try:
            vary = check_vary(self.vary, members)
        except RecordError as reason:
            raise InputError(str(reason)) from reason
        for opt in dict.fromkeys(member.config["opt"] for member in members):
            for pool in variants(opt, [member for member in members if member.config["opt"] == opt], vary).values():
                if len(pool) > 1:
                    raise InputError(f"methods {' and '.join(member.method for member in pool)} share an optimizer: figures "
                                     "pool the runs of one; name the setting that tells them apart, as in vary = [\"loss\"], or "
                                     "make them two studies")


def _place(entry: dict[str, Any], epoch: int) -> tuple[str, int, SurfaceSettings]:
    settings = SurfaceSettings(**{key: value for key, value in entry.items() if key not in PLACE})
    return check_name(entry.get("name", surface_name(epoch, settings))), epoch, settings


def _check_surfaces(run: Run) -> None:
    """See that surfaces have names of their own, and that eigenvector directions will have their spectrum."""
    names = [name for name, _, _ in run.surfaces]
    if len(set(names)) < len(names):
        raise InputError(f"two [[surfaces]] would share the file {max(names, key=names.count)}.h5: give each a name")
    for name, epoch, settings in run.surfaces:
        for group in settings.spectra:
            if group not in run.groups or epoch not in run.spectrum_epochs:
                raise InputError(f"[[surfaces]] {name} needs the spectrum of {group} at epoch {epoch}: add both to [spectrum]")


def _check_measures(run: Run) -> None:
    """See that measures along eigenvectors will have their spectra."""
    for name, epoch in run.measures:
        if MEASURES[name].spectra and epoch not in run.spectrum_epochs:
            raise InputError(f"[measures] {name} needs spectra at epoch {epoch}: add it to [spectrum] epochs, or choose others")


def _lists(where: str, document: dict[str, Any], **kinds: type) -> None:
    for name, kind in kinds.items():
        value = document.get(name, [])
        if not isinstance(value, (list, tuple)) or any(not isinstance(item, kind) for item in value):
            raise InputError(f"{where} {name}={value!r} is out of range: expected a list of {kind.__name__}")


def _known(where: str, document: dict[str, Any], names: list[str] | tuple[str, ...]) -> None:
    for name in document:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(names)}"
            raise InputError(f"{where} has an unknown entry {name!r}: {hint}")
