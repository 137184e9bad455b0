import numpy as np
import pytest
import torch
from PIL import Image

from landscape.data import load_data
from landscape.data.folders import load_folder
from landscape.errors import InputError


def draw(path, seed, mode="RGB", size=(8, 8)):
    """Write a random image and return its pixels."""
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    pixels = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def write(root, parts=("train", "test"), classes=("cat", "dog"), counts=(4, 3), **options):
    for part in parts:
        for c, (name, count) in enumerate(zip(classes, counts, strict=True)):
            for i in range(count):
                draw(root / part / name / f"{i}.png", 100 * c + i, **options)
    return root


def test_train_and_test_are_read_as_they_are(tmp_path):
    write(tmp_path / "pets", ("train",))
    write(tmp_path / "pets", ("test",), counts=(1, 2))
    data = load_data(f"folder:{tmp_path / 'pets'}", progress=False)
    assert data.counts.tolist() == [4, 3] and torch.bincount(data.test.labels).tolist() == [1, 2]
    assert data.class_names == ("cat", "dog") and data.name == "folder:pets" and data.notes == ()
    last = np.asarray(Image.open(tmp_path / "pets" / "train" / "dog" / "2.png")).transpose(2, 0, 1)
    assert np.array_equal(data.train.images[6].numpy(), last)


def test_classes_alone_give_a_fifth_to_the_test_part(tmp_path):
    write(tmp_path, ("",), counts=(20, 2))
    data, again = load_folder(tmp_path, progress=False), load_folder(tmp_path, progress=False)
    assert data.counts.tolist() == [16, 1] and torch.bincount(data.test.labels).tolist() == [4, 1]
    assert data.hash == again.hash
    together = {image.numpy().tobytes() for part in (data.train, data.test) for image in part.images}
    assert len(together) == 22


def test_gray_images_have_one_channel(tmp_path):
    write(tmp_path, mode="L")
    data = load_folder(tmp_path, progress=False)
    assert data.in_channels == 1
    assert np.array_equal(data.train.images[0, 0].numpy(), np.asarray(Image.open(tmp_path / "train/cat/0.png")))


def test_class_folders_named_by_numbers_are_ordered_as_numbers(tmp_path):
    write(tmp_path, classes=("10", "9", "2"), counts=(1, 2, 3))
    data = load_folder(tmp_path, progress=False)
    assert data.class_names == ("2", "9", "10") and data.counts.tolist() == [3, 2, 1]


def test_images_of_several_sizes_are_cut_to_a_square_and_resized_with_a_note(tmp_path):
    write(tmp_path)
    Image.new("RGB", (60, 20), (200, 10, 30)).save(tmp_path / "train" / "cat" / "wide.png")
    data = load_folder(tmp_path, progress=False)
    assert data.image_size == 32 and data.notes == ("images are not of one square size: resized to 32 x 32 pixels",)
    assert (data.train.images[4].flatten(1) == torch.tensor([[200], [10], [30]])).all()
    assert load_folder(tmp_path, 12, progress=False).image_size == 12


def test_a_wide_image_is_cut_around_its_middle_and_not_squeezed(tmp_path):
    write(tmp_path)
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40, 1] = 255
    Image.fromarray(stripes).save(tmp_path / "train" / "cat" / "wide.png")
    middle = load_folder(tmp_path, 10, progress=False).train.images[4]
    # The outermost columns are interpolated with what lies beyond the cut.
    assert (middle[:, :, 1:-1].flatten(1) == torch.tensor([[0], [255], [0]])).all()


def test_other_files_and_hidden_ones_are_left_out(tmp_path):
    write(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / "._0.png").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    assert load_folder(tmp_path, progress=False).counts.tolist() == [4, 3]


def test_the_profile_applies_to_folders_on_request(tmp_path):
    write(tmp_path, counts=(8, 8))
    assert load_data(f"folder:{tmp_path}", imb_factor=4, progress=False).counts.tolist() == [8, 2]


def test_class_names_are_shown_but_never_raw(tmp_path):
    write(tmp_path, classes=("a\nb", "$x^2$"), counts=(2, 2))
    assert load_folder(tmp_path, progress=False).class_names == ("$x^2$", "a?b")


def mixed(root):
    draw(root / "test" / "dog" / "gray.png", 0, mode="L")


def broken(root):
    (root / "train" / "cat" / "0.png").write_bytes(b"no image")


def truncated(root):
    path = root / "train" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:-40])


def deep(root):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(root / "train" / "cat" / "0.png")


def empty_class(root):
    (root / "train" / "eel").mkdir()
    (root / "test" / "eel").mkdir()


def other_classes(root):
    draw(root / "test" / "eel" / "0.png", 0)


def no_test(root):
    (root / "test").rename(root / "tset")


@pytest.mark.parametrize(("damage", "message"), [
    (mixed, "gray and color images are mixed .*gray.png is gray"),
    (broken, "cat/0.png cannot be read as an image"),
    (truncated, "cat/0.png cannot be read as an image"),
    (deep, "cat/0.png has pixels of mode I;16: expected 8-bit gray or color"),
    (empty_class, "eel holds no image: expected files ending in .bmp"),
    (other_classes, "hold different classes: expected the same folder names in both"),
    (no_test, "holds train/ alone: expected train/ and test/"),
])
def test_folders_that_cannot_be_used_are_one_clear_error(tmp_path, damage, message):
    damage(write(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        load_data(f"folder:{tmp_path}", progress=False)
    assert "\n" not in str(caught.value)


def test_a_place_without_classes_or_images_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="absent is not a folder: expected train/ and test/"):
        load_folder(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no folder: expected one a class"):
        load_folder(tmp_path)
    write(tmp_path, ("",), counts=(3, 1))
    with pytest.raises(InputError, match="a class with a single image: expected two"):
        load_folder(tmp_path, progress=False)


@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_an_impossible_image_size_is_an_error(tmp_path, size):
    write(tmp_path)
    with pytest.raises(InputError, match="image_size=.* is out of range: expected a whole number"):
        load_folder(tmp_path, size, progress=False)
