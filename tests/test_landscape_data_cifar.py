import hashlib
import os
import pickle
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape.data import load_data
from landscape.data.cifar import CIFAR10, CIFAR100, load_cifar
from landscape.data.dataset import channel_statistics
from landscape.errors import InputError

SMALL100 = replace(CIFAR100, train_per_class=6, test_per_class=2, num_classes=5)
SMALL10 = replace(CIFAR10, train_per_class=10, test_per_class=2, num_classes=3)
NOWHERE = "http://127.0.0.1:9/"  # the discard port: nobody answers


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No archive of this machine, no proxy, an empty working folder."""
    monkeypatch.delenv("LANDSCAPE_DATA_DIR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def batch(release, per_class, files, seed):
    """Make pixels and labels of one split, shuffled, in as many parts as the release has files."""
    random = np.random.RandomState(seed)
    labels = random.permutation(np.repeat(np.arange(release.num_classes), per_class))
    pixels = random.randint(0, 256, (len(labels), 3072)).astype(np.uint8)
    return [{"data": p, release.labels_key: q.tolist(), "batch_label": "x"}
            for p, q in zip(np.split(pixels, files), np.split(labels, files), strict=True)]


def fabricate(release, parent):
    """Write the extracted folder of a small release; return it and the release with the hashes of what was written."""
    folder = parent / release.folder
    folder.mkdir(parents=True)
    names = [name for name, _ in release.train_files]
    contents = dict(zip(names, batch(release, release.train_per_class, len(names), 0), strict=True))
    contents[release.test_file] = batch(release, release.test_per_class, 1, 1)[0]
    contents[release.names_file] = {release.names_key: [f"kind_{c}" for c in range(release.num_classes)]}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    hashes = tuple((name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name in names)
    return folder, replace(release, train_files=hashes)


def pack(folder, release, parent):
    """Write the archive of an extracted folder; return the release with its hash."""
    parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(parent / release.archive, "w:gz") as tar:
        tar.add(folder, release.folder)
    return replace(release, md5=hashlib.md5((parent / release.archive).read_bytes()).hexdigest())


def rewrite(path, **changes):
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content | changes, protocol=2))


@pytest.fixture(params=[SMALL10, SMALL100], ids=lambda release: release.name)
def small(request, tmp_path):
    return fabricate(request.param, tmp_path / "there")


@pytest.fixture
def server(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_images_labels_and_names_are_those_of_the_files(small):
    folder, release = small
    data = load_cifar(release, folder.parent)
    parts = batch(release, release.train_per_class, len(release.train_files), 0)
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images.numpy(), pixels)
    assert data.train.labels.tolist() == sum((part[release.labels_key] for part in parts), [])
    assert len(data.test) == release.test_per_class * release.num_classes
    assert data.class_names[:2] == ("kind_0", "kind_1") and data.name == release.name


def test_the_folder_is_found_at_every_documented_place(small, monkeypatch):
    folder, release = small
    places = [folder.parent, folder, str(folder.parent)]
    hashes = {load_cifar(release, place, base_url=NOWHERE).hash for place in places}
    monkeypatch.setenv("LANDSCAPE_DATA_DIR", str(folder.parent))
    hashes.add(load_cifar(release, base_url=NOWHERE).hash)
    monkeypatch.delenv("LANDSCAPE_DATA_DIR")
    Path("datasets").symlink_to(folder.parent)
    hashes.add(load_cifar(release, base_url=NOWHERE).hash)
    assert len(hashes) == 1


def test_an_archive_that_is_there_is_unpacked(small, tmp_path):
    folder, release = small
    release = pack(folder, release, tmp_path / "archives")
    data = load_cifar(release, tmp_path / "archives", base_url=NOWHERE)
    assert data.hash == load_cifar(release, folder).hash
    assert (tmp_path / "archives" / release.folder).is_dir()


@pytest.mark.parametrize("inside", [False, True], ids=["parent named", "folder itself named"])
def test_a_missing_data_set_is_downloaded_checked_and_unpacked(small, server, tmp_path, inside, capsys):
    folder, release = small
    release = pack(folder, release, tmp_path / "served")
    home = tmp_path / "new" / "home"
    place = home / release.folder if inside else home
    data = load_cifar(release, place, base_url=server)
    assert data.hash == load_cifar(release, folder).hash
    assert sorted(p.name for p in home.iterdir()) == sorted([release.archive, release.folder])
    assert capsys.readouterr().err.startswith(f"downloading {release.archive}")
    assert load_cifar(release, place, base_url=NOWHERE).hash == data.hash


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(small, server, tmp_path):
    folder, release = small
    pack(folder, release, tmp_path / "served")  # the release still expects the official archive
    with pytest.raises(InputError, match=f"expected {release.md5}.*put {release.archive} or"):
        load_cifar(release, tmp_path / "home", progress=False, base_url=server)
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize("release", [CIFAR10, CIFAR100], ids=lambda release: release.name)
def test_without_a_network_one_line_says_what_to_put_where(release):
    with pytest.raises(InputError) as caught:
        load_cifar(release, progress=False, base_url=NOWHERE)
    message = str(caught.value)
    assert "\n" not in message and not Path("datasets").exists()
    for part in (f"{release.name} is not in datasets", "refused", release.archive, release.folder, "--data_dir",
                 "LANDSCAPE_DATA_DIR"):
        assert part in message


def test_a_data_dir_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="data_dir=.*file is a file: expected the folder that holds cifar-100-python"):
        load_cifar(CIFAR100, tmp_path / "file", base_url=NOWHERE)


def test_a_copy_in_the_official_order_needs_no_note_and_another_says_so(small):
    folder, release = small
    assert load_cifar(release, folder).notes == ()
    last = release.train_files[-1][0]
    content = pickle.loads((folder / last).read_bytes())
    order = np.arange(len(content["data"]))[::-1]
    labels = [content[release.labels_key][i] for i in order]
    rewrite(folder / last, data=content["data"][order], **{release.labels_key: labels})
    (note,) = load_cifar(release, folder).notes
    assert f"this copy of {release.name} is not in the official order" in note and "'first'" in note


def test_wrong_counts_shapes_and_labels_name_the_file_and_what_was_expected(tmp_path):
    folder, release = fabricate(SMALL100, tmp_path / "there")
    good = {path: path.read_bytes() for path in folder.iterdir()}
    labels = pickle.loads(good[folder / "train"])["fine_labels"]
    swapped = [2 if label == 4 else label for label in labels]
    cases = [
        ("train", {"fine_labels": swapped}, r"train holds 12 images of class 2: expected 6 of each of 5 classes"),
        ("train", {"fine_labels": labels[:-1]}, r"wrong 'fine_labels': expected a list of 30 whole numbers 0 ... 4"),
        ("train", {"fine_labels": [5] + labels[1:]}, r"train holds the wrong 'fine_labels'"),
        ("train", {"fine_labels": [-1] + labels[1:]}, r"train holds the wrong 'fine_labels'"),
        ("train", {"fine_labels": [0.0] + labels[1:]}, r"train holds the wrong 'fine_labels'"),
        ("train", {"data": np.zeros((30, 9), np.uint8)}, r"wrong 'data' .uint8 .30, 9..: expected uint8 \(30, 3072\)"),
        ("train", {"data": np.zeros((30, 3072), np.int64)}, r"wrong 'data' .int64"),
        ("test", {"data": None}, r"test holds the wrong 'data' .NoneType.: expected uint8 \(10, 3072\)"),
        ("test", {"fine_labels": None}, r"test holds the wrong 'fine_labels'"),
        ("meta", {"fine_label_names": ["a"]}, r"meta holds no 'fine_label_names': expected a list of 5 class names"),
        ("meta", {"fine_label_names": [1, 2, 3, 4, 5]}, r"meta holds no 'fine_label_names'"),
    ]
    for file, changes, message in cases:
        rewrite(folder / file, **changes)
        with pytest.raises(InputError, match=f"{folder}.*{message}") as caught:
            load_cifar(release, folder)
        assert "\n" not in str(caught.value)
        (folder / file).write_bytes(good[folder / file])
    assert len(load_cifar(release, folder).train) == 30


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_a_missing_or_truncated_file_is_an_error_that_names_it(tmp_path, file):
    folder, release = fabricate(SMALL100, tmp_path / "there")
    (folder / file).write_bytes((folder / file).read_bytes()[:-30])
    with pytest.raises(InputError, match=f"{folder / file} is not a whole CIFAR file"):
        load_cifar(release, folder)
    (folder / file).unlink()
    with pytest.raises(InputError, match=f"{folder / file} cannot be read .No such file"):
        load_cifar(release, folder.parent)


def test_class_names_from_a_file_become_printable(tmp_path):
    folder, release = fabricate(SMALL100, tmp_path / "there")
    rewrite(folder / "meta", fine_label_names=["a\x1b[2J", b"b\n", "../c", "d", "e" * 1000])
    names = load_cifar(release, folder).class_names
    assert names[:4] == ("a?[2J", "b?", "../c", "d") and len(names[4]) == 60


def test_published_constants_are_those_of_the_releases():
    assert (CIFAR10.md5, CIFAR100.md5) == ("c58f30108f718f92721af3b95e74349a", "eb9058c3a382ffc7106e4002c42a8d85")
    assert CIFAR100.train_files == (("train", "16019d7e3df5f24257cddd939b257f8d"),)
    assert CIFAR10.train_files[0] == ("data_batch_1", "c99cafc152244af753f735de768cd75f")
    assert [name for name, _ in CIFAR10.train_files] == [f"data_batch_{i}" for i in range(1, 6)]
    for release, total in ((CIFAR10, 50000), (CIFAR100, 50000)):
        assert release.train_per_class * release.num_classes == total
        assert release.test_per_class * release.num_classes == 10000


def test_crops_flips_and_thresholds_are_those_of_the_sse_sam_release(small):
    folder, release = small
    data = load_cifar(release, folder)
    assert (data.augmentation.padding, data.augmentation.flip, data.augmentation.shift) == (4, True, 0)
    assert data.flip_average and (data.many, data.few) == ((1000, 200) if release.name == "cifar10" else (100, 20))


# The real CIFAR-100, where this machine has it. Read at import, before the fixture above changes folder and variable.

REAL = Path(os.environ.get("LANDSCAPE_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared" / "data")
needs_cifar100 = pytest.mark.skipif(
    not (REAL / CIFAR100.folder).is_dir() and REAL.name != CIFAR100.folder,
    reason=f"CIFAR-100 is not here: set LANDSCAPE_DATA_DIR to the folder that holds {CIFAR100.folder}")


@pytest.fixture(scope="module")
def real():
    return load_data("cifar100", imb_factor=1, data_dir=REAL.absolute(), progress=False)


@needs_cifar100
def test_real_cifar100_is_complete_and_matches_its_published_mean_and_std(real):
    assert real.counts.tolist() == [500] * 100 and torch.bincount(real.test.labels).tolist() == [100] * 100
    assert (real.class_names[0], real.class_names[99]) == ("apple", "worm")
    mean, std = channel_statistics(real.train.images[::5])  # a hundred images of each class
    assert mean == pytest.approx(real.mean, abs=0.003) and std == pytest.approx(real.std, abs=0.003)


@needs_cifar100
def test_real_cifar100_long_tailed_has_the_published_number_of_images():
    data = load_data("cifar100", data_dir=REAL.absolute(), progress=False, normalization="cifar10")
    assert len(data.train) == 10847 and (data.counts[0], data.counts[-1], data.imb_factor) == (500, 5, 100)
    assert data.mean == (0.4914, 0.4822, 0.4465)
