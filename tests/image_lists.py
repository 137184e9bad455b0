"""Folders of small generated images in the layouts of ImageNet-LT and iNaturalist 2018, in the working folder."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = (5, 3, 2)      # training images of each class; two of each for testing
SIZES = ((40, 30), (24, 36), (31, 31))


def draw(path, seed, size, mode="RGB"):
    """Write a smooth random image: what JPEG and resampling do to it is little."""
    coarse = Image.fromarray(np.random.RandomState(seed).randint(0, 256, (3, 3, 3)).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


def entries(pattern, counts, first=0):
    """Draw images and return (path, label) of each, the classes mixed as in the published lists."""
    rows = [(pattern.format(c=c, i=i), c) for i in range(max(counts)) for c, count in enumerate(counts) if i < count]
    for seed, (path, c) in enumerate(rows, first):
        draw(Path(path), seed, SIZES[seed % 3])
    return rows


def write_list(path, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(f"{name} {label}\n" for name, label in rows))


def write_json(path, rows, categories=(3, 7, 9)):
    images = [{"id": 100 + i, "file_name": name, "width": 1, "height": 1} for i, (name, _) in enumerate(rows)]
    notes = [{"id": i, "image_id": 100 + i, "category_id": categories[label]} for i, (_, label) in enumerate(rows)]
    named = [{"id": category, "name": f"species {category}", "supercategory": "Plantae"} for category in categories]
    Path(path).write_text(json.dumps({"images": images, "annotations": notes[::-1], "categories": named[::-1]}))


def imagenet_lt(counts=COUNTS):
    """Draw the images and write both lists of ImageNet-LT."""
    write_list("ImageNet_LT_train.txt", entries("train/n0144076{c}/n0144076{c}_{i}.JPEG", counts))
    write_list("ImageNet_LT_test.txt", entries("val/n0144076{c}/ILSVRC2012_val_{i}.JPEG", (2,) * len(counts), 50))
