"""What several processes train together and one trains alone, for comparison: `torchrun training_ranks.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from landscape.data import load_data
from landscape.distributed import Processes, init_from_environment
from landscape.errors import InputError
from landscape.optimizers import GroupSAM, ImbSAM
from landscape.training import TrainConfig, train

OPTIMIZERS = ("sgd", "sam", "imbsam", "ssesam")
WEIGHTINGS = ("batch", "double_tail", "group_mean")
CASES = {f"{opt}, {weighting}, {dtype}": {"opt": opt, "weighting": weighting, "dtype": dtype}
         for opt in OPTIMIZERS for weighting in WEIGHTINGS for dtype in ("float32", "float64")}
CASES |= {f"{opt}, {weighting}, pieces": {"opt": opt, "weighting": weighting, "dtype": "float64", "accumulate": 3}
          for opt in OPTIMIZERS for weighting in WEIGHTINGS}
CASES |= {f"{opt}, one image": {"opt": opt, "weighting": "group_mean", "dtype": "float64", "batch_size": 1, "max_steps": 8}
          for opt in OPTIMIZERS}
CASES |= {f"{opt}, amp16": {"opt": opt, "precision": "amp16"} for opt in OPTIMIZERS}
CASES |= {name: {"dtype": "float64", **settings} for name, settings in {
    "asam": {"opt": "asam"}, "friendlysam": {"opt": "friendlysam"}, "focalsam": {"opt": "focalsam"}, "pgd": {"opt": "pgd"},
    "lpfsgd": {"opt": "lpfsgd", "opt_options": {"lpf_std": 0.01, "lpf_draws": 2}},
    "ccsam": {"opt": "ccsam", "opt_options": {"perturb": "network"}},
    "gkp_gsa": {"opt": "gkp_gsa", "opt_options": {"num_groups": 2}, "epochs": 3},
    "gkp_gsa, released": {"opt": "gkp_gsa", "gkp_variant": "released", "opt_options": {"num_groups": 2}}}.items()}
CASES["deferred weights"] = {"opt": "ssesam", "dtype": "float64", "drw_epoch": 0}
LABELS = torch.tensor([2, 2, 0, 1, 0, 0, 1, 0, 0])     # all of the tail is in the first process's share


def network(batchnorm: bool = False, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = [nn.BatchNorm2d(4)] if batchnorm else [nn.GroupNorm(2, 4)]
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), *norm, nn.Tanh(), nn.Flatten(), nn.Linear(36, 4))


def vector(model: nn.Module) -> np.ndarray:
    return torch.cat([value.double().reshape(-1) for value in model.state_dict().values()]).numpy()


class Memory:
    """A recorder that keeps what it is told."""

    def __init__(self, point=None):
        self.calls, self.point = [], point

    def checkpoint(self, epoch, arrays):
        self.calls.append(f"checkpoint {epoch}")

    def epoch(self, metrics):
        self.calls.append(f"epoch {metrics['epoch']}")

    def resume(self, arrays):
        self.point = arrays

    def resumed(self):
        return self.point


def trained(processes, model=None, recorder=None, stop=None, **settings):
    data = load_data("synthetic", imb_factor=10)
    plain = {"dataset": "synthetic", "eta": 30, "epochs": 2, "batch_size": 41, "lr": 0.05, "gamma": 0.5}
    return train(TrainConfig(**plain | settings), data=data, model=model or network(), recorder=recorder, stop=stop,
                 processes=processes)


def measure(processes: Processes) -> dict[str, np.ndarray]:
    """Return every quantity that must not depend on the number of processes."""
    found = {}
    for name, settings in CASES.items():
        result = trained(processes, **settings)
        found[name] = np.append(vector(result.model), [row["train_loss"] for row in result.metrics])
    for weighting in WEIGHTINGS:
        found[f"a share without tail, {weighting}"] = own_loop(processes, weighting)
    return found


def own_loop(processes: Processes, weighting: str) -> np.ndarray:
    model = network().double()
    images = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = processes.share(9)
    assert processes.rank == 0 or not (LABELS[share] == 2).any()

    def closure():
        losses = cross_entropy(model(images[share]), LABELS[share], reduction="none")
        return losses, {"head": LABELS[share] < 2, "tail": LABELS[share] == 2}
    optimizer = ImbSAM(torch.optim.SGD(model.parameters(), lr=0.1), model, 0.3, weighting=weighting, processes=processes)
    losses = [float(optimizer.step(closure)) for _ in range(3)]
    return np.append(vector(model), losses)


def refusals(processes: Processes) -> dict[str, str]:
    """Return what is raised where the processes have parted, or the first of them fails."""
    def step_apart():
        model = network()
        optimizer = GroupSAM(torch.optim.SGD(model.parameters(), lr=0.1), model, {"all": 0.0}, processes=processes)
        with torch.no_grad():
            model[0].bias += processes.rank
        optimizer.end_epoch()

    def failing_recorder():
        memory = Memory()
        memory.epoch = lambda metrics: 1 / 0
        trained(processes, recorder=memory)
    actions = {"initial weights": lambda: trained(processes, network(seed=processes.rank)), "after a step": step_apart,
               "recorder": failing_recorder}
    return {name: _raised(action) for name, action in actions.items()}


def _raised(action) -> str:
    try:
        action()
    except (InputError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def continued(processes: Processes) -> np.ndarray:
    """Train in two calls, the first of them stopped in the middle of an epoch."""
    memory, answers = Memory(), iter([False, False, True])
    trained(processes, recorder=memory, opt="ssesam", precision="amp16", stop=lambda: next(answers))
    return vector(trained(processes, recorder=memory, opt="ssesam", precision="amp16").model)


def main(folder: Path) -> None:
    with init_from_environment() as here:
        memory = Memory()
        whole = trained(here, recorder=memory)
        batchnorm = trained(here, network(batchnorm=True))
        np.savez(folder / f"rank{here.rank}.npz", count=here.count, **measure(here), calls=memory.calls,
                 metrics=sorted(whole.metrics[-1]), notes=whole.notes, continued=continued(here),
                 batchnorm=vector(batchnorm.model), batchnorm_notes=batchnorm.notes,
                 **{f"refusal: {name}": text for name, text in refusals(here).items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
