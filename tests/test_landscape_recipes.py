"""Recipes: that they say what their sources record, which value wins, where they do not fit, and what is kept of them."""

import json
from dataclasses import fields

import pytest

from checkpoints.errors import RecordError
from checkpoints.provenance import provenance
from checkpoints.store import RunStore
from landscape.configuration import TrainConfig
from landscape.errors import InputError
from landscape.recipes import RECIPES, departures, filled, published
from landscape.schedules import learning_rate
from landscape.training import training_data
from scripts.cli import main
from scripts.options import Parser, add_common_arguments
from scripts.run_folder import open_run, slug
from scripts.study_plan import Study
from scripts.train_settings import add_settings, given_settings


def config(recipe, **given):
    return TrainConfig.from_dict(filled({"recipe": recipe} | given))


def command(*words):
    parser = Parser(prog="landscape train")
    add_settings(parser)
    add_common_arguments(parser)
    return TrainConfig.from_dict(given_settings(parser.parse_args(list(map(str, words)))))


# --- what they say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_word_of_a_recipe_is_a_setting(name):
    known, recipe = {f.name for f in fields(TrainConfig)}, RECIPES[name]
    tables = (recipe.settings, *(part for row in recipe.rows for part in row), *(where for where, _, _ in recipe.required))
    assert {word for table in tables for word in table} <= known
    assert recipe.settings["dataset"] in recipe.datasets and recipe.settings["selection"] == "test_best"


@pytest.mark.parametrize("name, dataset", [(name, dataset) for name, recipe in RECIPES.items() for dataset in recipe.datasets])
@pytest.mark.parametrize("loss", ["CE", "LDAM", "LA", "VA", "VS"])
@pytest.mark.parametrize("opt", ["sgd", "sam", "imbsam", "ssesam"])
def test_every_choice_that_a_recipe_leaves_open_is_a_valid_run(name, dataset, loss, opt):
    assert config(name, dataset=dataset, loss=loss, opt=opt, rho=0.3).rho == 0.3


def test_the_readmes_command_is_the_recipe_of_sse_sam():
    words = ("--imb_factor 100 --opt ssesam --loss CE --eta 100 --head_rho 0.05 --tail_rho 0.10 --gamma 0.70 "
             "--dataset cifar100 --arch resnet34 --scheduler_at start --restore subtract --norm_epsilon 1e-16 "
             "--gamma_rule released --normalization cifar10 --seed 9826 --selection test_best --flip_average").split()
    assert command(*words).identity() == config("sse-sam").identity()
    assert command("--recipe", "sse-sam") == config("sse-sam")


def test_without_a_recipe_the_last_epoch_is_the_result():
    assert TrainConfig().selection == command("--dataset", "synthetic").selection == "last"


# By hand from the documents: name, what is chosen -> settings, of which a mapping names the options it is to hold.
STEPS = {"schedule": "step", "milestones": (160, 180), "warmup_epochs": 5, "scheduler_at": "end", "flip_average": False}
RELEASED = {"arch": "resnet34", "batch_size": 64, "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "epochs": 200,
            "schedule": "cosine", "scheduler_at": "start", "restore": "subtract", "norm_epsilon": 1e-16, "batchnorm": "every",
            "imb_factor": 100.0, "subset": "first", "flip_average": True, "rho": 0.05}
GKP = STEPS | {"arch": "resnet32", "batch_size": 256, "lr": 0.15, "weight_decay": 5e-4, "epochs": 200, "decay": 0.1,
               "loss": "BCL", "loss_options": {"a": 2.0, "b": 0.6, "tau": 1.0, "temperature": 0.1, "s": 30.0},
               "opt_options": {"num_groups": 4}, "seed": 2131224, "subset": "seeded", "data_seed": 0}
LARGE = {"schedule": "cosine", "arch": "torchvision:resnet50"}
CC = STEPS | {"arch": "resnet32", "batch_size": 64, "lr": 0.1, "weight_decay": 2e-4, "epochs": 200 + 30, "decay": 0.1,
              "imb_factor": 200.0}
RANGWANI = STEPS | {"arch": "resnet32", "batch_size": 128, "lr": 0.1, "weight_decay": 2e-4, "epochs": 200, "decay": 0.01,
                    "imb_factor": 100.0, "subset": "seeded", "data_seed": 0, "opt": "sam", "batchnorm": "every"}
RECORDED = {
    "sse-sam": ({}, RELEASED | {"opt": "ssesam", "eta": 100, "head_rho": 0.05, "tail_rho": 0.1, "gamma": 0.7, "loss": "CE",
                                "gamma_rule": "released", "normalization": "cifar10", "eval_every": 10, "seed": 9826}),
    "sse-sam, LDAM": ({"loss": "LDAM"}, {"loss_options": {"form": "release", "max_m": 0.5, "s": 30.0}, "drw_epoch": None}),
    "sse-sam, LA": ({"loss": "LA"}, {"loss_options": {"tau": 0.75}}),
    "sse-sam, VS": ({"loss": "VS"}, {"loss_options": {"gamma": 0.05, "tau": 0.75}, "gamma": 0.7}),
    "imbsam": ({}, RELEASED | {"opt": "imbsam", "eta": 20, "weighting": "double_tail", "loss": "CE", "eval_every": 1,
                               "dataset": "cifar100"}),
    "rangwani": ({}, RANGWANI | {"dataset": "cifar10", "rho": 0.1, "drw_epoch": None}),
    "rangwani, CE and DRW": ({"dataset": "cifar100", "drw_epoch": 160}, RANGWANI | {"rho": 0.8, "drw_beta": 0.9999}),
    "rangwani, LDAM": ({"loss": "LDAM"}, {"loss_options": {"form": "paper", "max_m": 0.5, "s": 30.0}, "drw_epoch": 160,
                                          "drw_beta": 0.9999, "rho": 0.8}),
    "rangwani, VS": ({"loss": "VS", "rho": 0.1}, {"loss_options": {"gamma": 0.3, "tau": 1.0}}),
    "gkp-gsa": ({}, GKP | {"opt": "gkp_gsa", "gkp_variant": "paper"}),
    "gkp-gsa, CIFAR-10": ({"dataset": "cifar10"}, GKP),
    "gkp-gsa, as released": ({"gkp_variant": "released"}, {"opt_options": {"num_groups": 1}, "batchnorm": "clean"}),
    "gkp-gsa, ImageNet-LT": ({"dataset": "imagenet-lt"}, LARGE | {"epochs": 90, "lr": 0.1, "weight_decay": 5e-4,
                                                                  "opt_options": {"num_groups": 6}}),
    "gkp-gsa, iNaturalist": ({"dataset": "inaturalist18"}, LARGE | {"epochs": 100, "lr": 0.2, "weight_decay": 1e-4,
                                                                    "opt_options": {"num_groups": 4}}),
    "focal-sam": ({}, {"arch": "resnet32", "batch_size": 64, "lr": 0.1, "epochs": 200, "schedule": "cosine", "loss": "LA",
                       "normalization": "cifar10", "rho": 0.3, "weight_decay": 1e-3, "batchnorm": "every",
                       "opt_options": {"focal_gamma": 3.2, "focal_weight": 0.8}}),
    "cc-sam": ({}, CC | {"dataset": "cifar100", "opt_options": {
        "radius_scale": 1e-6, "flat_ratio": 0.5, "adversarial": 1.0, "adversarial_cap": 0.3, "second_stage": 30 / 230}}),
    "cc-sam, CIFAR-10": ({"dataset": "cifar10"}, CC | {"opt_options": {
        "radius_scale": 1e-6, "flat_ratio": 0.3, "adversarial": 1.0, "adversarial_cap": 1.0, "second_stage": 30 / 230}}),
}


@pytest.mark.parametrize("case", RECORDED)
def test_a_recipes_settings_are_the_numbers_that_its_source_records(case):
    chosen, recorded = RECORDED[case]
    run = config(case.partition(",")[0], **chosen)
    for name, expected in (recorded | {"selection": "test_best"}).items():
        found = getattr(run, name)
        if isinstance(expected, dict):
            found = {option: found.get(option) for option in expected}
        assert found == expected, name


def test_sse_sams_rates_are_the_released_ones():
    run = config("sse-sam")
    assert learning_rate(run, 0) == pytest.approx(0.00999938, abs=5e-9) and learning_rate(run, 199) == 0


def test_imbsam_counts_the_tail_as_its_own_release_and_as_the_baseline_of_sse_sam():
    assert config("imbsam").weighting == "double_tail" and config("imbsam").eta == 20
    assert config("sse-sam", opt="imbsam").weighting == "group_mean" and config("sse-sam").weighting == "batch"


@pytest.mark.parametrize("dataset, given, rho, drw_epoch", [
    ("cifar10", {}, 0.1, None), ("cifar10", {"drw_epoch": 160}, 0.5, 160), ("cifar10", {"loss": "LDAM"}, 0.8, 160),
    ("cifar100", {}, 0.2, None), ("cifar100", {"drw_epoch": 160}, 0.8, 160), ("cifar100", {"loss": "LDAM"}, 0.8, 160),
    ("cifar10", {"drw_epoch": 150}, 0.5, 150), ("cifar10", {"rho": 0.05}, 0.05, None),
])
def test_rangwanis_radii_follow_data_set_and_loss(dataset, given, rho, drw_epoch):
    run = config("rangwani", dataset=dataset, **given)
    assert (run.rho, run.drw_epoch, run.opt, run.arch) == (rho, drw_epoch, "sam", "resnet32")


def test_rangwanis_rates_are_the_released_ones():
    run = config("rangwani")
    rates = {epoch: learning_rate(run, epoch) for epoch in (0, 4, 5, 159, 160, 179, 180, 199)}
    assert rates == pytest.approx({0: 0.02, 4: 0.1, 5: 0.1, 159: 0.1, 160: 1e-3, 179: 1e-3, 180: 1e-5, 199: 1e-5})


@pytest.mark.parametrize("dataset, loss, lr, weight_decay", [
    ("imagenet-lt", "CE", 0.2, 2e-4), ("imagenet-lt", "LDAM", 0.2, 2e-4), ("inaturalist18", "LDAM", 0.1, 1e-4)])
def test_rangwani_on_large_data(dataset, loss, lr, weight_decay):
    run = config("rangwani", dataset=dataset, loss=loss, opt="sgd")
    assert (run.lr, run.weight_decay, run.epochs, run.batch_size, run.schedule) == (lr, weight_decay, 90, 256, "cosine")
    assert run.arch == "torchvision:resnet50" and run.drw_epoch == (60 if loss == "LDAM" else None)
    assert run.loss_options.get("max_m") == (0.3 if loss == "LDAM" else None)


@pytest.mark.parametrize("dataset, rho, options, weight_decay", [
    ("cifar10", 0.2, {"focal_gamma": 3.0, "focal_weight": 0.5}, 2e-4),
    ("cifar100", 0.3, {"focal_gamma": 3.2, "focal_weight": 0.8}, 1e-3)])
def test_focal_sams_constants_follow_the_data_set(dataset, rho, options, weight_decay):
    run = config("focal-sam", dataset=dataset)
    assert (run.rho, run.opt_options, run.weight_decay, run.loss_options) == (rho, options, weight_decay, {"tau": 1.0})
    assert config("focal-sam", dataset=dataset, opt="sam").opt_options == {} and run.opt == "focalsam"


@pytest.mark.parametrize("opt, given, all_classes", [
    ("lpfsgd", {"drw_epoch": 160}, 78.5), ("pgd", {"drw_epoch": 160}, 77.2), ("sam", {"drw_epoch": 160}, 80.6),
    ("sam", {}, 73.1), ("sgd", {"loss": "LDAM"}, 77.5), ("pgd", {}, None), ("sam", {"drw_epoch": 160, "imb_factor": 10.0}, None)])
def test_rangwanis_escape_baselines_stand_beside_their_published_accuracies(opt, given, all_classes):
    found = published(config("rangwani", opt=opt, **given).as_dict())
    assert found == ({} if all_classes is None else {"all": all_classes})


@pytest.mark.parametrize("given, all_classes", [
    ({"dataset": "cifar100"}, 53.2), ({"dataset": "cifar100", "opt_options": {"scale": 0.0}}, 52.4),
    ({"dataset": "cifar100", "opt_options": {"penalty": 0.0}}, 52.7), ({"dataset": "cifar10"}, 86.3),
    ({"dataset": "cifar10", "opt_options": {"scale": 0.0}}, None), ({"dataset": "imagenet-lt"}, 57.9),
    ({"dataset": "imagenet-lt", "arch": "timm:resnext50_32x4d"}, 58.9), ({"dataset": "inaturalist18"}, 74.4),
    ({"dataset": "cifar100", "gkp_variant": "released"}, None)])
def test_gkp_gsa_stands_beside_what_is_published_for_the_whole_or_the_part_that_was_trained(given, all_classes):
    assert published(config("gkp-gsa", **given).as_dict()).get("all") == all_classes


def test_options_of_the_optimizer_are_overridden_one_by_one():
    run = config("cc-sam", dataset="cifar10", opt_options={"radius_scale": 0.02})
    assert run.opt_options["radius_scale"] == 0.02 and run.opt_options["flat_ratio"] == 0.3


# --- which value wins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_switch_can_be_overridden(name):
    other = {str: None, int: 7, float: 0.125, bool: False, tuple: (1,), object: "last"}
    for f in fields(TrainConfig):
        if f.name in ("recipe", "dataset", "loss", "loss_options", "opt", "opt_options", "arch", "normalization", "device"):
            continue    # the recipe depends on them, or they are names without a list of choices
        choices = [choice for choice in f.metadata["choices"] if choice != RECIPES[name].settings.get(f.name)]
        value = choices[0] if choices else 9.0 if f.name == "imb_factor" else other[f.metadata["kind"]]
        run = config(name, **{"epochs": 200, "rho": 0.3, "many": 9.0, "few": 0.0} | {f.name: value})
        assert getattr(run, f.name) == value


def test_defaults_then_recipe_then_file_then_command_line(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "sse-sam"\nlr = 0.5\nepochs = 30\n')
    run = command("--config", file, "--epochs", "20")
    assert (run.recipe, run.eta, run.lr, run.epochs, run.eval_every) == ("sse-sam", 100, 0.5, 20, 10)
    assert command("--config", file, "--recipe", "rangwani").batch_size == 128 != TrainConfig().batch_size


def test_options_of_the_loss_are_overridden_one_by_one():
    run = config("rangwani", loss="LDAM", loss_options={"max_m": 0.25})
    assert run.loss_options == {"form": "paper", "max_m": 0.25, "s": 30.0}


def test_without_a_recipe_nothing_is_filled_in():
    assert filled({"lr": 0.5}) == {"lr": 0.5} and filled({"recipe": None}) == {"recipe": None}


def test_a_study_takes_a_recipe_and_its_methods_stand_on_it():
    methods = {"ce": {"opt": "sgd"}, "imbsam": {"opt": "imbsam"}, "ours": {"opt": "ssesam"}}
    shared = {"recipe": "sse-sam", "epochs": 30}
    study = Study.from_dict({"name": "table", "train": shared, "seeds": [3], "methods": methods})
    runs = {run.config.opt: run.config for run in study.runs()}
    weightings = {opt: run.weighting for opt, run in runs.items()}
    assert weightings == {"sgd": "batch", "imbsam": "group_mean", "ssesam": "batch"}
    assert {(run.recipe, run.epochs, run.eta, run.seed, run.dataset) for run in runs.values()} == {
        ("sse-sam", 30, 100, 3, "cifar100")}


# --- where they do not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given, told", [
    ({"recipe": "sse_sam"}, "recipe='sse_sam' is unknown: did you mean sse-sam? expected one of sse-sam, imbsam, rangwani"),
    ({"recipe": 3}, "recipe=3 is unknown: expected one of"),
    ({"recipe": "rangwani", "dataset": "digits"}, "recipe=rangwani does not fit dataset='digits': it is for cifar10, cifar100"),
    ({"recipe": "imbsam", "dataset": "cifar10"}, "recipe=imbsam does not fit dataset='cifar10': it is for cifar100;"),
    ({"recipe": "rangwani", "loss": "VS"}, "recipe=rangwani has no rho for dataset=cifar10, loss=VS, opt=sam"),
    ({"recipe": "rangwani", "dataset": "imagenet-lt"}, "recipe=rangwani has no rho for dataset=imagenet-lt"),
])
def test_what_does_not_fit_is_one_line_that_says_what_does(given, told):
    with pytest.raises(InputError) as caught:
        filled(given)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_on_the_command_line_it_is_one_line_and_status_2(tmp_path, capsys):
    for words in (("--recipe", "rangwani", "--dataset", "digits"), ("--recipe", "sse"), ("--selection", "best")):
        assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "expected" in err or "it is for" in err
    assert not (tmp_path / "run").exists()


# --- what is kept, and what differs -------------------------------------------------------------------------


def test_a_recipe_is_a_name_and_no_part_of_what_makes_the_run(tmp_path):
    named = config("sse-sam")
    plain = TrainConfig.from_dict(named.identity())
    assert plain.recipe is None and plain.identity() == named.identity() and slug(plain) == slug(named)
    assert TrainConfig.from_dict(named.stored()) == named
    store = open_run(tmp_path / "run", named, provenance())
    assert store.config["recipe"] == "sse-sam"
    assert open_run(tmp_path / "run", plain, provenance()).config == store.config


def test_a_run_resumed_with_its_recipes_name_keeps_its_own_settings():
    parser = Parser(prog="landscape train")
    add_settings(parser)
    stored = config("sse-sam", lr=0.5).stored()
    given = given_settings(parser.parse_args(["--recipe", "sse-sam", "--device", "cpu"]), stored)
    assert TrainConfig.from_dict(stored | given) == config("sse-sam", lr=0.5, device="cpu")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_departs_from_itself_in_nothing(name):
    assert departures(json.loads(json.dumps(config(name).stored()))) == {}


def test_departures_are_named_with_both_values():
    run = config("rangwani", dataset="cifar100", drw_epoch=160, milestones=(10, 20), rho=0.5).stored()
    assert departures(run) == {"dataset": ("cifar10", "cifar100"), "drw_epoch": (None, 160),
                               "milestones": ([160, 180], [10, 20]), "rho": (0.8, 0.5)}


def test_inspect_prints_each_departure_and_what_no_setting_expresses(tmp_path, capsys):
    store = RunStore.create(tmp_path / "run", config("sse-sam", epochs=30, restore="copy").stored())
    with store.writer():
        recorder = store.recorder()
        for epoch, accuracy in ((1, 0.5), (2, 0.25)):
            recorder.epoch({"epoch": epoch, "test_accuracy/all": accuracy, "test_accuracy_flip/all": accuracy / 2})
    assert main(["inspect", str(store.path)]) == 0
    text = capsys.readouterr().out
    for part in ("recipe sse-sam (Lyu et al., AAAI 2025", "epochs   200 in the recipe, 30 here",
                 "restore  subtract in the recipe, copy here", "what no setting here expresses:",
                 RECIPES["sse-sam"].inexpressible[0], RECIPES["sse-sam"].traps[0],
                 "result: test accuracy at epoch 1, best, selected on the test set, flips averaged\n  all 25.00%"):
        assert part in text
    assert main(["inspect", "--json", str(store.path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recipe"]["differs"] == {"epochs": {"recipe": 200, "run": 30},
                                             "restore": {"recipe": "subtract", "run": "copy"}}
    assert document["result"]["selected_on_test_set"] is True


def test_the_final_table_marks_the_result_and_what_the_test_set_selected(tmp_path, capsys):
    run = TrainConfig(dataset="synthetic", epochs=2, eval_every=1)
    data = training_data(run)
    store = RunStore.create(tmp_path / "run", run.resolved(data).stored(), provenance=provenance(data_hash=data.hash))
    with store.writer():
        recorder = store.recorder()
        for epoch, accuracy in ((1, 0.5), (2, 0.25)):
            recorder.epoch({"epoch": epoch, "test_accuracy/all": accuracy, "test_accuracy_flip/all": accuracy / 2})
        store.mark_finished()
    words, tables = ["train", "--dataset", "synthetic", "--epochs", "2", "--eval_every", "1", "--out", str(store.path)], []
    for selection in ("last", "test_best"):     # another report of the same run: nothing is trained
        assert main([*words, "--selection", selection]) == 0
        shown = capsys.readouterr().out
        assert "nothing to train" in shown
        tables.append([line for line in shown.splitlines() if line[:8] in ("* epoch ", "  epoch ")])
    marked = [line for table in tables for line in table if line.startswith("* epoch")]
    assert len(marked) == 2 and ", last" in marked[0] and "best, selected on the test set" in marked[1]
    assert all("selected on the test set" in line for table in tables for line in table if "best," in line)


# --- runs stored before a setting was there -----------------------------------------------------------------


def test_a_run_stored_before_a_setting_existed_is_continued_at_its_default(tmp_path):
    run = TrainConfig(dataset="synthetic")
    old = {name: value for name, value in run.identity().items() if name not in ("restore", "norm_epsilon")}
    store = RunStore.create(tmp_path / "run", old)
    assert open_run(tmp_path / "run", run, provenance()).config == store.config
    with pytest.raises(RecordError, match='restore="copy" there, "subtract" here'):
        open_run(tmp_path / "run", TrainConfig(dataset="synthetic", restore="subtract"), provenance())


def test_new_settings_leave_the_names_of_earlier_folders_alone():
    assert slug(TrainConfig()) == "digits-ce-sgd-seed0-a5643030"
    assert slug(TrainConfig(opt="ssesam", gamma=0.7, seed=3)) == "digits-ce-ssesam-seed3-d32a0fce"
    assert slug(TrainConfig(restore="subtract")) != slug(TrainConfig())
