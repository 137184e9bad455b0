from dataclasses import replace

import pytest
from fabricated_runs import fake_run, fake_runs
from sample_records import measurement

from checkpoints.comparison import check_same_object, check_same_view, compare
from checkpoints.errors import RecordError

FEW = {"epochs": (0, 60), "probes": 1, "steps": 4}


def test_runs_are_pooled_by_optimizer_in_the_papers_order_and_by_seed():
    pooled = compare(fake_runs(("ssesam", "sgd", "sam"), (2, 0, 1), **FEW))
    assert pooled.optimizers == ("sgd", "sam", "ssesam")
    assert [member.config["seed"] for member in pooled.members["sam"]] == [0, 1, 2]
    assert pooled.num_seeds == 3


@pytest.mark.parametrize("key, value", [("dataset", "cifar10"), ("eta", 30), ("imb_factor", 50.0), ("arch", "mlp")])
def test_other_data_or_groups_are_refused_with_the_key_that_differs(key, value):
    runs = [fake_run("sgd", **FEW), fake_run("sam", **FEW, **{key: value})]
    with pytest.raises(RecordError, match=f"{key}={value} and {key}="):
        compare(runs)


def test_one_optimizer_with_another_learning_rate_is_no_other_seed():
    with pytest.raises(RecordError, match="lr=0.1 and lr=0.01: runs/sgd-1 and runs/sgd-0 are both sgd"):
        compare([fake_run("sgd", 0, **FEW), fake_run("sgd", 1, lr=0.1, **FEW)])


def test_the_place_of_computing_does_not_matter():
    pooled = compare([fake_run("sgd", 0, device="cpu", **FEW), fake_run("sgd", 1, device="cuda", **FEW)])
    assert pooled.num_seeds == 2


def test_a_run_given_twice_is_refused():
    with pytest.raises(RecordError, match="repeat a seed"):
        compare([fake_run("sgd", 0, **FEW), fake_run("sgd", 0, **FEW)])


def test_no_run_is_refused():
    with pytest.raises(RecordError, match="at least one run folder"):
        compare([])


def test_the_default_epoch_is_the_last_that_all_runs_have():
    runs = [fake_run("sgd", epochs=(0, 30, 60), probes=1, steps=4), fake_run("sam", epochs=(0, 30), probes=1, steps=4)]
    assert compare(runs).epoch(("head", "tail")) == 30


def test_an_absent_record_is_refused_with_the_command_that_makes_it():
    runs = compare([fake_run("sgd", **FEW), fake_run("sam", groups=("head",), **FEW)])
    with pytest.raises(RecordError, match="landscape spectrum runs/sam-0 --epoch 60 --group tail"):
        runs.epoch(("head", "tail"))
    with pytest.raises(RecordError, match="landscape spectrum runs/sgd-0 --epoch 7 --group head"):
        runs.epoch(("head",), 7)


def test_a_run_without_any_spectrum_is_refused_with_a_command():
    runs = compare([fake_run("sgd", groups=(), **FEW)])
    with pytest.raises(RecordError, match="landscape spectrum runs/sgd-0 --epoch 60 --group head"):
        runs.epoch(("head",))
    with pytest.raises(RecordError, match="landscape spectrum runs/sgd-0"):
        runs.curvature_epochs("sgd", ("head",))


def test_a_group_without_classes_is_absent_but_an_unevaluated_run_says_nothing():
    run = fake_run("sgd", **FEW)
    run.table["test_accuracy/few"] = float("nan")
    runs = compare([run])
    assert runs.absent("few") and runs.absent("class:3") and not runs.absent("tail")
    assert runs.present(("tail", "few")) == ("tail",)
    with pytest.raises(RecordError, match="no class of this data"):
        runs.present(("few",))
    run.table = run.table[["epoch"]]
    assert not compare([run]).absent("few")


def test_spectra_of_other_data_or_fewer_images_do_not_mix():
    record = fake_run("sgd", **FEW).kept[0]
    check_same_object([record, record])
    with pytest.raises(RecordError, match="num_samples=7 and num_samples=500"):
        check_same_object([record, replace(record, num_samples=7)])
    inputs = record.provenance["inputs"]
    for changed, message in (({"data": "d2"}, "data=d2 and data=d1"),
                             ({"settings": {"split": "test"}}, "split=test and split=train"),
                             ({"classes": {"head": [1]}}, "classes={'head'")):
        with pytest.raises(RecordError, match=message):
            check_same_object([record, replace(record, provenance={"inputs": inputs | changed})])


def test_surfaces_of_other_epochs_or_units_do_not_mix():
    surface = compare([fake_run("sgd", **FEW)]).surface("sgd", "random-plane")
    check_same_view([surface, surface])
    with pytest.raises(RecordError, match="epoch=3 and epoch=60"):
        check_same_view([surface, replace(surface, epoch=3)])
    with pytest.raises(RecordError, match=r"num_samples=\[5, 6\] and num_samples=\[500, 60\]"):
        check_same_view([surface, replace(surface, num_samples=surface.num_samples * 0 + [5, 6])])


def test_surfaces_are_listed_by_dimension_and_refused_where_absent():
    runs = compare(fake_runs(("sgd", "sam"), (0,), **FEW))
    assert runs.surface_names(2) == ["random-plane"]
    assert runs.surface_names(1) == ["tail-lambda_max", "tail-lambda_min"]
    with pytest.raises(RecordError, match="no plane at epoch 30 .* landscape surface runs/sgd-0"):
        runs.surface_names(2, 30)
    with pytest.raises(RecordError, match="there are: random-plane, tail-lambda_max"):
        runs.surface("sgd", "elsewhere")


@pytest.mark.parametrize("gamma, epochs, rule", [(0.7, 200, "ceil"), (0.55, 200, "ceil"), (0.55, 200, "released"),
                                                 (0.7, 60, "released"), (0.07, 100, "ceil"), (0.01, 10, "ceil")])
def test_the_switch_is_where_the_optimizer_makes_it(gamma, epochs, rule):
    from landscape.optimizers import switch_epoch
    member = compare([fake_run("ssesam", gamma=gamma, gamma_rule=rule, probes=1, steps=4)]).everyone[0]
    member.run.config["epochs"] = epochs
    assert member.switch == switch_epoch(gamma, epochs, rule)


def test_runs_without_a_second_stage_have_no_switch():
    def switch(opt, **config):
        return compare([fake_run(opt, groups=(), **config)]).everyone[0].switch

    assert switch("sgd") is None and switch("sgd", drw_epoch=40) == 40
    assert switch("ssesam", gamma=0.0) is None and switch("ssesam", gamma=1.0) is None


def test_eigenvectors_are_not_kept():
    member = compare([fake_run("sgd", **FEW)]).everyone[0]
    assert all(record.eigenpairs.vectors.shape == (0, 400) for record in member.curvatures.values())


def test_a_measurement_is_found_by_name_and_epoch_and_an_absent_one_names_its_command():
    run = fake_run("sgd", **FEW)
    run.kept += [measurement("alignment", 60), measurement("alignment", 30), measurement("toy", 0)]
    member = compare([run]).everyone[0]
    assert member.measurement("alignment", 30) is run.kept[-2] and len(member.measurements) == 3
    with pytest.raises(RecordError, match="runs/sgd-0: no measurement of toy at epoch 60; make it with: "
                                          "landscape measure toy runs/sgd-0 --epoch 60"):
        member.measurement("toy", 60)


def test_settings_that_vary_make_pools_of_their_own_in_the_order_of_their_values():
    runs = [fake_run("sam", seed, rho=rho, **FEW) for rho in (0.2, 0.05) for seed in (0, 1)] + [fake_run("sgd", **FEW)]
    pooled = compare(runs, vary="rho")
    assert pooled.optimizers == ("sgd", "sam rho=0.05", "sam rho=0.2") and pooled.vary == ("rho",)
    assert [member.config["rho"] for member in pooled.members["sam rho=0.2"]] == [0.2, 0.2]
    with pytest.raises(RecordError, match="rho=0.05 and rho=0.2: .* choose runs that agree in rho"):
        compare(runs)
    with pytest.raises(RecordError, match="rho=0.2"):
        compare(runs, vary="lr")


def test_a_setting_in_which_runs_agree_names_no_pool():
    assert compare([fake_run("sam", rho=0.1, **FEW)], vary=("rho", "loss")).optimizers == ("sam",)


def test_losses_may_vary_side_by_side():
    runs = [fake_run("sgd", **FEW), fake_run("sgd", loss="LDAM", drw_epoch=40, **FEW)]
    assert compare(runs, vary=("loss", "drw_epoch")).optimizers == ("sgd loss=CE,drw_epoch=None", "sgd loss=LDAM,drw_epoch=40")
    mixed = compare(runs, vary=("loss", "drw_epoch"))
    assert len(mixed.curvatures("sgd loss=LDAM,drw_epoch=40", 60, "tail")) == 1
    for run in runs:
        run.kept = [replace(record, provenance={"inputs": {"settings": {"loss": "training"}}})
                    for record in run.records("curvature")]
    with pytest.raises(RecordError, match="Hessians of different training losses"):
        compare(runs, vary=("loss", "drw_epoch")).curvatures("sgd loss=CE,drw_epoch=None", 60, "tail")


@pytest.mark.parametrize("vary, message", [("rhoo", "did you mean rho"), ("eta", "other data, groups or names"),
                                           ("seed", "vary=seed is out of range")])
def test_what_cannot_vary_is_refused(vary, message):
    with pytest.raises(RecordError, match=message):
        compare([fake_run("sam", rho=0.1, **FEW)], vary=vary)


def test_labels_of_one_training_do_not_part_its_seeds():
    runs = [fake_run("sgd", 0, selection="last", recipe=None, **FEW), fake_run("sgd", 1, selection="test_best", **FEW)]
    assert compare(runs).num_seeds == 2


def test_members_read_once_serve_several_comparisons():
    first = compare([fake_run("sgd", **FEW)])
    assert compare(first.everyone).everyone[0] is first.everyone[0]


def test_unequal_numbers_of_seeds_are_told_one_by_one():
    assert compare(fake_runs(("sgd", "sam"), (0, 1), **FEW)).seeds_in_words() == "2 seeds"
    assert compare([fake_run("sgd", **FEW)]).seeds_in_words() == "one seed"
    runs = compare([*fake_runs(("sgd",), (0, 1), **FEW), fake_run("sam", **FEW)])
    assert runs.seeds_in_words(str.upper) == "seeds: 2 of SGD, 1 of SAM" and runs.num_seeds == 2


def test_the_optimizer_of_imported_weights_is_unknown_where_nobody_has_stated_it():
    made, stated = fake_run("sgd", 0, **FEW), fake_run("sgd", 1, **FEW)
    made.provenance, stated.provenance = {"imported": {}, "stated": ["arch"]}, {"imported": {}, "stated": ["opt"]}
    assert compare([made, stated]).optimizers == ("sgd", "unknown")


@pytest.mark.parametrize("provenance, value", [({}, 0.002), ({"imported": {}, "stated": ["opt"]}, None),
                                               ({"imported": {}, "stated": ["weight_decay"]}, 0.002), ({"imported": {}}, 0.002)])
def test_the_weight_decay_of_imported_weights_is_known_where_it_was_stated(provenance, value):
    run = fake_run("sgd", weight_decay=0.002, **FEW)
    run.provenance = provenance
    assert compare([run]).everyone[0].weight_decay == value
