import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_lists import COUNTS, draw, entries, imagenet_lt, write_json, write_list
from PIL import Image

from landscape.configuration import TrainConfig
from landscape.data import load_data
from landscape.data.batches import batch_sizes, shuffled_batches
from landscape.data.imagefiles import random_part
from landscape.data.imagelist import NORMALIZATIONS
from landscape.errors import InputError
from landscape.evaluation import outcome
from landscape.training import train


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that stands for --data_dir, with ImageNet-LT's layout in it."""
    monkeypatch.chdir(tmp_path)
    imagenet_lt()
    return tmp_path


def load(name="imagenet-lt", **options):
    return load_data(name, **{"data_dir": ".", "progress": False, "image_size": 16, "workers": 0} | options)


def epoch(data, seed=5, batch_size=4):
    sizes = batch_sizes(len(data.train), batch_size)
    return list(shuffled_batches(data, sizes, 1, seed, torch.float32))


def test_imagenet_lt_is_read_in_its_published_layout(folder):
    data = load(image_size=None)
    assert data.train.images.shape == (10, 3, 224, 224) and data.train.images.dtype == torch.uint8
    assert data.counts.tolist() == list(COUNTS) and torch.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert (data.many, data.few, data.image_size, data.in_channels, data.flip_average) == (100, 20, 224, 3, True)
    assert (data.mean, data.std) == NORMALIZATIONS["imagenet"] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.notes == ("ImageNet_LT_train.txt holds 3 classes and 10 images, imagenet-lt as published 1000 and 115846: "
                          "results are not comparable",)


def test_the_folder_may_lie_under_the_names_of_the_data_sets(folder, monkeypatch):
    inside = load()
    folder.joinpath("sets").mkdir()
    for part in ("train", "val", "ImageNet_LT_train.txt", "ImageNet_LT_test.txt"):
        folder.joinpath("sets/imagenet-lt").mkdir(exist_ok=True)
        folder.joinpath(part).rename(folder / "sets/imagenet-lt" / part)
    monkeypatch.setenv("LANDSCAPE_DATA_DIR", str(folder / "sets"))
    assert load(data_dir=None).hash == inside.hash


@pytest.mark.parametrize("kind", ["text", "json"])
def test_inaturalist_is_read_from_its_lists_and_from_its_official_documents(folder, kind):
    train = entries("train_val2018/Plantae/{c}/a{i}.jpg", COUNTS)
    test = entries("train_val2018/Plantae/{c}/b{i}.jpg", (1, 1, 1), 50)
    if kind == "text":
        write_list("iNaturalist18_train.txt", train), write_list("iNaturalist18_val.txt", test)
    else:
        write_json("train2018.json", train), write_json("val2018.json", test)
    data = load("inaturalist18")
    assert data.counts.tolist() == list(COUNTS) and (data.mean, data.std) == NORMALIZATIONS["inaturalist18"]
    assert data.class_names == (("0", "1", "2") if kind == "text" else ("species 3", "species 7", "species 9"))
    by_path = dict(zip(data.train.images.names.tolist(), data.train.labels.tolist()))
    assert by_path == {name.encode(): label for name, label in train}


def test_own_lists_may_hold_spaces_blank_lines_and_detours_inside(folder):
    rows = entries("own/images of mine/{c} {i}.png", (2, 1))
    lines = [f"./x/../{name.removeprefix('own/')}\t{label}  " for name, label in rows]
    folder.joinpath("own/train.txt").write_bytes("\r\n\r\n".join(lines).encode("utf-8-sig"))
    write_list("own/test.txt", [(name.removeprefix("own/"), label) for name, label in entries("own/t{c}{i}.png", (1, 1))])
    data = load("list:own")
    assert data.counts.tolist() == [2, 1] and data.name == "list:own" and data.notes == ()
    assert data.train.images.names[0] == b"images of mine/0 0.png"
    assert load("list:own", imb_factor=1).counts.tolist() == [1, 1]


def test_evaluation_sees_the_middle_of_the_image_resized_to_256_over_224(folder):
    data = load(image_size=14)
    for i, name in enumerate(data.train.images.names.tolist()):
        image = Image.open(name.decode()).convert("RGB")
        scale = 16 / min(image.size)
        width, height = (int(side * scale) if side > min(image.size) else 16 for side in image.size)
        left, upper = round((width - 14) / 2), round((height - 14) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, upper, left + 14, upper + 14))
        seen = data.train.images[torch.tensor([i])][0].int()
        assert (seen - torch.from_numpy(np.array(image)).permute(2, 0, 1).int()).abs().max() <= 1    # rounding


def test_indexing_taking_and_batches_agree(folder):
    images = load().train.images
    everything = images[:]
    assert everything.shape == images.shape and everything.dtype == torch.uint8 and len(images) == 10
    chosen = torch.tensor([7, 0, 3])
    assert torch.equal(images[chosen], everything[chosen]) and torch.equal(images.take(chosen)[:], everything[chosen])
    split = load().train
    (pixels, labels), = split.batches([chosen])
    assert torch.equal(pixels, everything[chosen]) and torch.equal(labels, split.labels[chosen])
    part = split.take(chosen.numpy()).to("cpu")
    assert torch.equal(part.images[1:], everything[[0, 3]]) and len(part) == 3


def test_the_number_of_workers_changes_no_bit_and_an_epoch_repeats(folder):
    alone, shared = load(workers=0), load(workers=2)
    first, random = epoch(alone), torch.get_rng_state()
    assert torch.cat([labels for _, labels in first]).bincount().tolist() == list(COUNTS)
    for again in (epoch(shared), epoch(shared), epoch(alone)):
        assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two))
    assert torch.equal(shared.test.images[:], alone.test.images[:])
    assert torch.equal(random, torch.get_rng_state())       # loaders draw nothing from the network's generator


def test_an_epoch_left_in_the_middle_does_not_leak_into_the_next(folder):
    data = load(workers=1)
    whole = epoch(data)
    begun = shuffled_batches(data, [4, 4, 2], 1, 6, torch.float32)
    next(begun)
    assert all(torch.equal(one[0], two[0]) for one, two in zip(whole, epoch(data), strict=True))
    with pytest.raises(RuntimeError, match="read twice at the same time"):
        next(begun)


def test_augmentation_differs_between_epochs_and_parts_follow_from_the_position_alone(folder):
    data = load()
    assert not torch.equal(epoch(data, 5)[0][0], epoch(data, 6)[0][0])
    reverse = torch.arange(9, -1, -1)
    one = torch.cat([images for images, _ in data.train.images.read(reverse.split(3), seed=4)])
    other = torch.cat([images for images, _ in data.train.images.read([torch.arange(10)], seed=4)])
    assert torch.equal(one.flip(0), other) and not torch.equal(other, data.train.images[:])


def test_random_parts_lie_inside_and_have_the_published_areas_and_aspects():
    random = np.random.default_rng(0)
    parts = np.array([random_part(400, 300, random) for _ in range(3000)])
    width, height = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    assert (parts[:, :2] >= 0).all() and (parts[:, 2] <= 400).all() and (parts[:, 3] <= 300).all()
    areas, aspects = width * height / 120000, width / height
    assert 0.078 < areas.min() < 0.09 and areas.max() > 0.9 and 0.74 < aspects.min() < 0.76 and 1.32 < aspects.max() < 1.35
    assert abs(np.log(aspects[areas < 0.5]).mean()) < 0.02          # small parts always fit: log-uniform about 1
    assert random_part(1000, 10, random) == (493, 0, 506, 10) and random_part(1, 1, random) == (0, 0, 1, 1)


def test_without_augmentation_training_sees_what_evaluation_sees(folder):
    data = load()
    (images, _), = shuffled_batches(data, [10], 1, None, torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(images, data.inputs(data.train.images[:], torch.float64)[order])


def test_the_hash_is_that_of_the_list_and_of_the_files_sizes(folder):
    before = load().hash
    assert load(workers=2, broken_images="skip").hash == before
    assert load(image_size=20).hash != before
    text = Path("ImageNet_LT_train.txt").read_text()
    write_list("ImageNet_LT_train.txt", [line.split() for line in reversed(text.splitlines())])
    assert load().hash != before
    Path("ImageNet_LT_train.txt").write_text(text)
    with open("train/n01440760/n01440760_0.JPEG", "ab") as file:
        file.write(b"\0")
    assert load().hash != before


def test_gray_and_cmyk_images_become_rgb(folder):
    draw(Path("train/n01440760/n01440760_0.JPEG"), 1, (20, 20), "L")
    draw(Path("train/n01440761/n01440761_0.JPEG"), 2, (20, 20), "CMYK")
    images = load().train.images[:2]
    assert torch.equal(images[0, 0], images[0, 1]) and not torch.equal(images[1, 0], images[1, 1])


BROKEN = "train/n01440761/n01440761_1.JPEG"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("damage", "reason"), [(lambda raw: raw[:-60], "truncated"),
                                                (lambda raw: b"hello", "not an image of a known format"),
                                                (lambda raw: b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image")])
def test_a_broken_image_is_named_and_ends_the_reading(folder, damage, reason, workers):
    Path(BROKEN).write_bytes(damage(Path(BROKEN).read_bytes()))
    with pytest.raises(InputError, match=f"{BROKEN} cannot be read as an image .*{reason}.*broken_images=skip") as caught:
        epoch(load(workers=workers))
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_left_out_and_counted_where_that_is_asked_for(folder):
    whole, pixels = torch.cat([labels for _, labels in epoch(load())]), load().train.images[:]
    Path(BROKEN).write_bytes(b"")
    data = load(broken_images="skip")
    batches = epoch(data)
    assert [len(images) for images, _ in batches] == [len(labels) for _, labels in batches]
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted([*whole.tolist()])[:5] + [1, 1, 2, 2]
    (images, labels), = data.train.batches([torch.arange(10)])
    others = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9])
    assert torch.equal(images, pixels[others]) and torch.equal(labels, data.train.labels[others])
    assert list(data.skipped) == [BROKEN] and data.to("cpu").skipped == data.skipped and data.test.skipped == {}
    with pytest.raises(InputError, match="1 of 10 images are broken: .*n01440761_1.JPEG"):
        data.train.images[:]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    assert len(outcome(model, data, split="train", batch_size=1).labels) == 9


def test_a_batch_without_images_and_a_split_without_any_are_errors(folder):
    for file in [*Path("train").rglob("*.JPEG")][:9] + [*Path("val").rglob("*.JPEG")]:
        file.write_bytes(b"")
    data = load(broken_images="skip")
    with pytest.raises(InputError, match=r"all 4 images of a batch are broken, such as .*JPEG: mend"):
        epoch(data)
    with pytest.raises(InputError, match="no image of the test split can be read: 6 are broken"):
        outcome(torch.nn.Linear(1, 1), data)


CONFIG = {"dataset": "imagenet-lt", "arch": "mlp", "image_size": 16, "epochs": 2, "batch_size": 4, "workers": 0, "opt": "imbsam",
          "eta": 3}


def test_a_training_on_files_repeats_and_goes_on_bit_by_bit(folder):
    class Keeper:
        rows, point = [], None

        def checkpoint(self, epoch, arrays):
            pass

        def epoch(self, metrics):
            pass

        def resume(self, arrays):
            self.point = arrays

        def resumed(self):
            return self.point

    whole, keeper = train(TrainConfig(**CONFIG), data=load()), Keeper()
    steps = iter([False, False, False, True])
    assert train(TrainConfig(**CONFIG), data=load(workers=1), recorder=keeper, stop=lambda: next(steps)).stopped
    resumed = train(TrainConfig(**CONFIG), data=load(), recorder=keeper)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert whole.metrics[-1]["train_loss"] == resumed.metrics[-1]["train_loss"]
    assert whole.config.imb_factor is None and "test_accuracy_flip/all" in whole.metrics[-1]
    assert "skipped_images" not in whole.metrics[-1]


def test_a_training_says_how_many_images_it_left_out(folder):
    Path(BROKEN).write_bytes(b"")
    Path("val/n01440760/ILSVRC2012_val_0.JPEG").write_bytes(b"")
    config = TrainConfig(**CONFIG | {"broken_images": "skip"})
    rows = train(config, data=load(broken_images="skip")).metrics
    assert [row["skipped_images"] for row in rows] == [1, 2]    # the test images are read after the last epoch


def append(text, file="ImageNet_LT_train.txt"):
    with open(file, "a") as lines:
        lines.write(text)


@pytest.mark.parametrize(("line", "message"), [
    ("train/a.jpg\n", "ImageNet_LT_train.txt, line 11: 'train/a.jpg' is not 'path label'"),
    ("7\n", "line 11: '7' is not 'path label'"),
    ("train/a.jpg 1.5\n", "line 11: 'train/a.jpg 1.5' is not"),
    ("train/a.jpg 99999999999\n", "line 11: .* is not"),
    ("train/a\x1b[31m\n", "line 11: .train/a.{1,4}.31m. is not"),
    ("train/n01440761/n01440761_1.JPEG 1\n", "line 11: '.*_1.JPEG' stands in line 5 already"),
    ("train/x/../n01440761/n01440761_1.JPEG 0\n", "line 11: '.*_1.JPEG' stands in line 5 already"),
    ("/etc/passwd 0\n", "line 11: '/etc/passwd' leads out of the folder"),
    ("train/../../secret.jpg 0\n", "line 11: 'train/../../secret.jpg' leads out of the folder"),
    ("a.jpg 1000\nb.jpg -1\n", r"line 11: the label 1000 is out of range \(as are 2 in all\): expected 0 ... 999"),
    ("a.jpg 1\nb.jpg 1\n", r"2 of the 12 images of .*train.txt are not there, the first \(line 11\) '.*a.jpg'"),
])
def test_a_line_that_cannot_be_used_is_named(folder, line, message):
    append(line)
    with pytest.raises(InputError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_classes_without_images_labels_without_class_and_common_images_are_told(folder):
    append("train/n01440761/n01440761_2.JPEG 3\n", "ImageNet_LT_test.txt")
    with pytest.raises(InputError, match="ImageNet_LT_test.txt, line 7: the label 3 is out of range .*expected 0 ... 2"):
        load()
    draw(Path("train/more.jpg"), 0, (9, 9))
    append("train/more.jpg 4\n")
    with pytest.raises(InputError, match="class 3 .3. has no training image"):
        load()
    Path("ImageNet_LT_train.txt").write_text(Path("ImageNet_LT_train.txt").read_text().replace("more.jpg 4", "more.jpg 3"))
    assert "1 images stand in the training list and in the test list" in load().notes


@pytest.mark.parametrize(("content", "message"), [
    (b"", "train.txt names no image"),
    (b"\xff\xfe 1\n", "train.txt cannot be read .*UTF-8"),
    (b"a 70000\n", "line 1: the label 70000 is out of range .*: expected 0 ... 0"),
])
def test_an_own_list_that_cannot_be_used_is_one_clear_error(folder, content, message):
    folder.joinpath("train.txt").write_bytes(content)
    with pytest.raises(InputError, match="does not hold train.txt and test.txt"):
        load("list:.")
    folder.joinpath("test.txt").write_text("a 0\n")
    with pytest.raises(InputError, match=message):
        load("list:.")


def without(key):
    return lambda document: document.pop(key)


@pytest.mark.parametrize(("change", "message"), [
    (without("categories"), "train2018.json has no list 'categories': expected a JSON document with images, annotations"),
    (lambda d: d["images"][2].pop("file_name"), r"images\[2\] has no 'file_name': expected a text"),
    (lambda d: d["annotations"][0].update(category_id="3"), r"annotations\[0\] has no 'category_id': expected a whole number"),
    (lambda d: d["annotations"][1].update(category_id=5), r"annotations\[1\]: category_id 5 is not among the categories"),
    (lambda d: d["annotations"][1].update(image_id=5), r"annotations\[1\]: image_id 5 is not among the images"),
    (lambda d: d["annotations"].append(d["annotations"][0]), r"annotations\[10\]: '.*' stands in annotations\[0\] already"),
    (lambda d: d["annotations"].pop(0), "tells no category of 1 images, such as 'train_val2018"),
    (lambda d: d["images"][0].update(file_name="../x.jpg"), r"annotations\[9\]: '../x.jpg' leads out of the folder"),
    (lambda d: d["categories"][0].update(name="other"), "tell different categories"),
])
def test_a_document_that_cannot_be_used_is_one_clear_error(folder, change, message):
    write_json("train2018.json", entries("train_val2018/{c}/a{i}.jpg", COUNTS))
    write_json("val2018.json", entries("train_val2018/{c}/b{i}.jpg", (1, 1, 1)))
    document = json.loads(Path("train2018.json").read_text())
    change(document)
    Path("train2018.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message) as caught:
        load("inaturalist18")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[" * 100000, "[]", "null"])
def test_text_that_is_no_such_document_is_one_clear_error(folder, text):
    for file in ("train2018.json", "val2018.json"):
        Path(file).write_text(text)
    with pytest.raises(InputError, match="train2018.json (cannot be read|has no list 'images')"):
        load("inaturalist18")


@pytest.mark.parametrize(("options", "message"), [
    ({"name": "inaturalist18"}, "inaturalist18 is not in .: expected iNaturalist18_train.txt and .*, or train2018.json and"),
    ({"imb_factor": 100}, "imb_factor=100 does not apply to imagenet-lt"),
    ({"image_size": 0}, "image_size=0 is out of range"),
    ({"workers": -1}, "workers=-1 is out of range"),
    ({"broken_images": "mend"}, "broken_images='mend' is unknown: expected stop or skip"),
])
def test_settings_that_do_not_fit_are_errors(folder, options, message):
    with pytest.raises(InputError, match=message):
        load(**options)
