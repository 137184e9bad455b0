"""Digits: 1,797 real 8x8 images of handwritten digits that scikit-learn carries, so that nothing is downloaded.

Source: the test part of Alpaydin and Kaynak (1998, UCI), as in `sklearn.datasets.load_digits`. Each class gives 54
images for testing, drawn once with a fixed seed, and 120 for training. Gray levels 0 ... 16 are spread over 0 ... 255.
A mirrored digit is another sign, so there are no flips; a pixel is an eighth of the image, so shifts are of one pixel.
"""

import numpy as np
import torch

from landscape.data.augment import Augmentation
from landscape.data.dataset import LongTailData, Split, channel_statistics
from landscape.data.longtail import split_test, subset_indices

TEST_PER_CLASS = 54    # leaves the smallest class, the eights, 120 of its 174 for training
TRAIN_PER_CLASS = 120
LEVELS = 16


def load_digits() -> LongTailData:
    """Return the balanced data set: 1,200 images for training, 540 for testing, always the same ones."""
    from sklearn import datasets  # half a second that other data sets need not wait for

    table = datasets.load_digits()
    images = torch.from_numpy(np.rint(table.images * (255 / LEVELS)).astype(np.uint8)).unsqueeze(1)  # (N, 1, 8, 8)
    whole = Split(images, torch.from_numpy(table.target.astype(np.int64)))
    train, test = (whole.take(part) for part in split_test(whole.labels, np.full(10, TEST_PER_CLASS)))
    train = train.take(subset_indices(train.labels.numpy(), np.full(10, TRAIN_PER_CLASS)))
    mean, std = channel_statistics(train.images)
    return LongTailData("digits", train, test, tuple("0123456789"), mean, std, Augmentation(shift=1), many=60, few=20)
