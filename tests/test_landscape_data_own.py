import sys

import numpy as np
import pytest
import torch

from landscape.data import LongTailData, load_data
from landscape.errors import InputError

RANDOM = np.random.RandomState(0)
COLOR = RANDOM.randint(0, 256, (9, 8, 8, 3)).astype(np.uint8)
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2])


@pytest.fixture
def save(tmp_path):
    def write(**changes):
        arrays = {"x_train": COLOR, "y_train": LABELS, "x_test": COLOR[:3], "y_test": LABELS[[0, 5, 8]]} | changes
        np.savez(tmp_path / "own.npz", **{key: value for key, value in arrays.items() if value is not None})
        return f"npz:{tmp_path / 'own.npz'}"
    return write


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the working folder, which is not on the path, as under a console script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])

    def write(text, name="landscape_test_own"):
        (tmp_path / f"{name}.py").write_text("import numpy as np\nimport torch\n" + text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name
    yield write
    sys.modules.pop("landscape_test_own", None)


def test_arrays_are_used_as_they_are_unless_a_factor_is_given(save):
    data = load_data(save())
    assert data.counts.tolist() == [5, 3, 1] and data.imb_factor == 5 and data.subset == "all" and data.notes == ()
    assert data.name == "npz:own.npz" and data.class_names == ("0", "1", "2")
    assert (data.augmentation.padding, data.augmentation.flip, data.flip_average) == (1, False, False)
    assert np.array_equal(data.train.images.numpy(), COLOR.transpose(0, 3, 1, 2))


def test_a_factor_thins_from_the_smallest_class_and_notes_that(save):
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    data = load_data(save(y_train=labels, y_test=labels[3:6]), imb_factor=2)
    assert data.counts.tolist() == [4, 2] and data.subset == "first"
    assert data.notes == ("classes hold 4 to 5 training images: the profile starts at 4",)


@pytest.mark.parametrize("images", [COLOR, COLOR.transpose(0, 3, 1, 2), COLOR.astype(np.int64), COLOR.astype(">i2")])
def test_both_layouts_and_all_whole_number_types_read_the_same(save, images):
    assert load_data(save(x_train=images)).hash == load_data(save()).hash


@pytest.mark.parametrize("images", [COLOR[..., 0], COLOR[..., :1], COLOR[:, None, :, :, 0]])
def test_gray_images_have_one_channel_with_and_without_an_axis(save, images):
    data = load_data(save(x_train=images, x_test=images[:3]))
    assert data.in_channels == 1 and np.array_equal(data.train.images[:, 0].numpy(), COLOR[..., 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_images_of_any_scale_are_normalized_by_their_own_statistics(save, dtype):
    data = load_data(save(x_train=(COLOR - 100.0).astype(dtype), x_test=COLOR[:3].astype(dtype)))
    seen = data.inputs(data.train.images)
    assert data.train.images.dtype == torch.float32
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3))


def test_labels_may_be_a_column(save):
    assert load_data(save(y_train=LABELS[:, None])).hash == load_data(save()).hash


NAN = np.full((9, 8, 8), np.nan)


@pytest.mark.parametrize(("changes", "message"), [
    ({"x_test": None, "y_test": None}, "has no array x_test, y_test: expected x_train, y_train, x_test, y_test"),
    ({"x_train": COLOR[0, 0]}, r"images of shape \(8, 3\): expected"),
    ({"x_train": COLOR[..., :2]}, r"images of shape \(9, 8, 8, 2\): expected"),
    ({"x_train": COLOR[:, :3]}, r"images of shape \(9, 3, 8, 3\): .*a single axis that can be C"),
    ({"x_train": COLOR[:8]}, r"labels of shape \(9,\).*expected \(8,\)"),
    ({"x_train": COLOR[:0], "y_train": LABELS[:0]}, r"labels of type int64 and shape \(0,\)"),
    ({"x_train": COLOR.astype(int) + 200}, "images with values .*: expected whole numbers 0 ... 255"),
    ({"x_train": -COLOR.astype(int)}, "images with values"),
    ({"x_train": NAN}, "NaN or infinite"),
    ({"x_train": np.full((9, 8, 8), 1e300)}, "NaN or infinite"),
    ({"x_train": COLOR > 3}, "an array of type bool"),
    ({"x_train": COLOR.astype(str)}, "an array of type <U"),
    ({"x_test": COLOR[:3, :4, :4]}, "differ: expected one shape"),
    ({"x_test": COLOR[:3, ..., 0]}, "differ: expected one shape"),
    ({"y_train": LABELS.astype(float)}, "labels of type float64"),
    ({"y_train": LABELS - 1}, "labels run from -1"),
    ({"y_train": LABELS * 2}, "class 1 .1. has no training image"),
    ({"y_train": LABELS + 10**12}, "has the label 1000000000002 but 9 training images"),
    ({"y_train": LABELS.astype(np.uint64) + 2**63}, "training labels run from -"),
    ({"y_test": np.array([0, 1, 3])}, "class 3 .3. has no training image"),
    ({"y_train": np.array([[0, 1]] * 9)}, r"shape \(9, 2\): expected whole numbers of shape"),
])
def test_arrays_that_cannot_be_used_are_one_clear_error(save, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load_data(save(**changes))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz_are_one_clear_error(save, tmp_path):
    path = tmp_path / "own.npz"
    save()
    whole = path.read_bytes()
    np.save(tmp_path / "single.npy", COLOR)
    np.savez(tmp_path / "objects.npz", **dict.fromkeys(("x_train", "y_train", "x_test", "y_test"), np.array([{}])))
    path.write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text").write_text("x_train")
    for name in ("own.npz", "single.npy", "objects.npz", "text", "absent.npz"):
        with pytest.raises(InputError, match=f"{name} cannot be read .*: expected an npz file without pickled objects"):
            load_data(f"npz:{tmp_path / name}")
    path.write_bytes(whole.replace(b"'shape': (9, 8", b"'shape': (5, 8"))
    with pytest.raises(InputError, match="cannot be read"):
        load_data(f"npz:{path}")


FOUR = "x = np.arange(72, dtype=np.uint8).reshape(8, 3, 3); y = np.arange(8) % 2\n"


@pytest.mark.parametrize("answer", ["x, y, x, y",
                                    "[torch.tensor(x), torch.tensor(y), torch.tensor(x), torch.tensor(y)]",
                                    "x, y.astype(np.int8), x[::-1], torch.tensor(y, dtype=torch.int32)"])
def test_a_callable_gives_arrays_or_tensors(module, answer):
    name = module(FOUR + f"def load():\n    return {answer}\n")
    before = list(sys.path)
    data = load_data(f"{name}:load")
    assert data.counts.tolist() == [4, 4] and data.image_size == 3 and sys.path == before
    assert data.train.images.flatten().tolist() == list(range(72))


def test_a_callable_may_give_a_data_set_of_its_own_and_it_is_thinned_on_request(module):
    name = module("from landscape.data import load_data\nclass Sets:\n    def whole():\n"
                  "        return load_data('synthetic', imb_factor=1)\n")
    assert isinstance(load_data(f"{name}:Sets.whole"), LongTailData)
    assert load_data(f"{name}:Sets.whole").counts.tolist() == [60] * 4
    assert load_data(f"{name}:Sets.whole", imb_factor=60).counts.tolist() == [60, 15, 3, 1]


def test_the_answer_is_a_copy_that_later_changes_do_not_reach(module):
    name = module(FOUR + "def load():\n    return x, y, x, y\n")
    data = load_data(f"{name}:load")
    sys.modules[name].x[:] = 0
    assert data.train.images.max() == 71


def test_low_precision_tensors_with_gradients_are_read(module):
    name = module("def load():\n    x = torch.rand(4, 1, 5, 5, dtype=torch.bfloat16, requires_grad=True)\n"
                  "    return x, torch.tensor([0, 1, 0, 1]), x, torch.tensor([0, 1, 0, 1])\n")
    data = load_data(f"{name}:load")
    assert data.train.images.dtype == torch.float32 and not data.train.images.requires_grad


@pytest.mark.parametrize(("attribute", "message"), [
    ("absent", "does not exist"),
    ("number", "is of type int: expected something to call"),
    ("nothing", "returned NoneType: expected a LongTailData"),
    ("three", "returned tuple: expected a LongTailData, or the four"),
    ("lists", "has list among its images and labels"),
])
def test_a_callable_that_gives_something_else_is_one_clear_error(module, attribute, message):
    name = module("number = 3\ndef nothing(): pass\ndef three(): return 1, 2, 3\n"
                  "def lists(): return [[1]], [0], [[1]], [0]\n")
    with pytest.raises(InputError, match=f"{name}:{attribute}'? {message}"):
        load_data(f"{name}:{attribute}")


def test_a_module_that_is_not_there_is_an_error_and_one_that_fails_shows_its_own(module):
    with pytest.raises(InputError, match="landscape_test_absent:load' cannot be imported .No module named"):
        load_data("landscape_test_absent:load")
    name = module("def load():\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_data(f"{name}:load")
    with pytest.raises(InputError, match="the working folder"):
        load_data("landscape_test_absent.inner:load")


def test_a_module_in_the_working_folder_shadows_nothing_installed(module):
    module("def load():\n    raise SystemExit\n", name="colorsys")
    with pytest.raises(InputError, match="'colorsys:load' does not exist: colorsys has no 'load'"):
        load_data("colorsys:load")
