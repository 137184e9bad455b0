"""TrainConfig: defaults of the release, one line for each mistake, plain values out and in."""

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest

from landscape.configuration import TrainConfig
from landscape.data import load_data
from landscape.errors import InputError


def test_defaults_are_the_ssesam_releases():
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.lr, config.momentum, config.weight_decay) == (
        200,
        64,
        0.01,
        0.9,
        1e-3,
    )
    assert (config.rho, config.head_rho, config.tail_rho, config.gamma) == (0.05, 0.05, 0.05, 0.0)
    assert (config.loss, config.opt, config.schedule, config.eval_every) == ("CE", "sgd", "cosine", 10)


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().lr = 1.0


FULL = {
    "dataset": "cifar100",
    "loss": "LDAM",
    "loss_options": {"max_m": 0.3},
    "milestones": [3, 5],
    "checkpoint_epochs": [0, 4],
    "epochs": 6,
    "opt": "ssesam",
    "gamma": 0.5,
    "drw_epoch": 4,
    "max_steps": 9,
    "threads": 2,
    "device": "cpu",
    "augment": False,
}


@pytest.mark.parametrize("settings", [{}, FULL])
def test_a_dictionary_round_trip_through_json_changes_nothing(settings):
    config = TrainConfig.from_dict(settings)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert list(config.as_dict()) == [f.name for f in fields(TrainConfig)]


def test_identity_leaves_out_where_the_run_is_computed():
    one, other = TrainConfig(device="cpu", threads=1), TrainConfig(threads=2)
    assert one != other and one.identity() == other.identity()
    assert TrainConfig(seed=1).identity() != one.identity()
    assert TrainConfig.from_dict(one.identity()) == TrainConfig()


def test_numbers_of_one_value_make_one_identity():
    assert TrainConfig(lr=1, imb_factor=100).identity() == TrainConfig(lr=1.0, imb_factor=0.01).identity()


def test_the_readmes_word_for_la_is_accepted():
    assert TrainConfig(loss="VA").loss == "LA"


def test_defaults_that_depend_on_the_data_are_filled_in_once_data_are_there():
    data = load_data("synthetic")
    config = TrainConfig("synthetic").resolved(data)
    assert (config.arch, config.eta, config.many, config.few) == ("mlp", 20, data.many, data.few)
    assert config.imb_factor == data.imb_factor == 10
    assert config.resolved(data) == config
    chosen = TrainConfig("synthetic", arch="resnet20", eta=0, imb_factor=4).resolved(data)
    assert (chosen.arch, chosen.eta, chosen.imb_factor) == ("resnet20", 0, 4)


def test_own_data_given_whole_stay_whole():
    assert TrainConfig("folder:images").resolved(load_data("synthetic")).imb_factor is None


@pytest.mark.parametrize(
    "chosen, kept", [("last", {6}), ("every:2", {0, 2, 4, 6}), ("every:4", {0, 4, 6}), ([0, 3], {0, 3, 6}), ([], {6})]
)
def test_checkpoints_are_kept_where_asked_and_at_the_end(chosen, kept):
    assert TrainConfig(epochs=6, checkpoint_epochs=chosen).kept_epochs() == kept


BAD = {
    "epochs=0 is out of range: expected an integer >= 1": {"epochs": 0},
    "epochs='3' is out of range": {"epochs": "3"},
    "epochs=2.5 is out of range": {"epochs": 2.5},
    "batch_size=0 is out of range": {"batch_size": 0},
    "lr=nan is out of range": {"lr": math.nan},
    "lr=-1 is out of range": {"lr": -1},
    "momentum=1.0 is out of range: expected a number, 0 <= momentum < 1": {"momentum": 1.0},
    "weight_decay=inf": {"weight_decay": math.inf},
    "gamma=1.5 is out of range: expected a number, 0 <= gamma <= 1": {"gamma": 1.5},
    "tail_rho=-0.1 is out of range: expected a number >= 0": {"tail_rho": -0.1},
    "imb_factor=0": {"imb_factor": 0},
    "seed=-1": {"seed": -1},
    "seed=True": {"seed": True},
    "seed=9223372036854775808 is out of range: expected an integer, 0 <= seed <= 9223372036854775807": {"seed": 2**63},
    "data_seed=4294967296 is out of range: expected an integer, 0 <= data_seed <= 4294967295": {"data_seed": 2**32},
    "seed=1000": {"seed": 10**400},
    "threads=0": {"threads": 0},
    "augment=1 is out of range: expected True or False": {"augment": 1},
    "drw_beta=1": {"drw_beta": 1},
    "drw_epoch=201 is out of range: expected 0 <= drw_epoch <= epochs=200": {"drw_epoch": 201},
    "warmup_epochs=9": {"warmup_epochs": 9, "epochs": 8},
    "few=5": {"many": 3, "few": 5},
    "opt='adam' is unknown: expected one of sgd, sam,": {"opt": "adam"},
    "loss='BCE' is unknown": {"loss": "BCE"},
    "schedule='linear' is unknown": {"schedule": "linear"},
    "scheduler_at='middle'": {"scheduler_at": "middle"},
    "weighting='sum'": {"weighting": "sum"},
    "batchnorm='never'": {"batchnorm": "never"},
    "profile='pareto'": {"profile": "pareto"},
    "dtype='float16' is unknown: expected one of float32, float64": {"dtype": "float16"},
    "dataset=3": {"dataset": 3},
    "epochs=None": {"epochs": None},
    "checkpoint_epochs='every:0' is unknown": {"checkpoint_epochs": "every:0"},
    "checkpoint_epochs='first' is unknown": {"checkpoint_epochs": "first"},
    "checkpoint_epochs=0,7 is out of range: expected epochs from 0 to epochs=6": {
        "checkpoint_epochs": [0, 7],
        "epochs": 6,
    },
    "checkpoint_epochs=-1": {"checkpoint_epochs": [-1]},
    "milestones='160'": {"milestones": "160"},
    "loss_options: 'tau' is unknown to loss CE": {"loss_options": {"tau": 1}},
    "loss_options=[1]": {"loss_options": [1]},
    "setting 'tailrho' is unknown: did you mean tail_rho?": {"tailrho": 1},
    "setting 'xyzzy' is unknown: expected some of dataset": {"xyzzy": 1},
}


@pytest.mark.parametrize("told", BAD)
def test_each_mistake_is_one_clear_line(told):
    with pytest.raises(InputError) as caught:
        TrainConfig.from_dict(BAD[told])
    assert told in str(caught.value) and "\n" not in str(caught.value)
