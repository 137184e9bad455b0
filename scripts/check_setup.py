"""`landscape doctor`: whether this machine is ready, which data are found, and what it would be good for.

Ready means: every required library is there, a Hessian-vector product of a small network is symmetric, and an engine serves.
"""

import argparse
import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.options import add_common_arguments, emit_json, say

NAME = "doctor"
HELP = "check libraries, device, memory and data, and say what this machine is good for"
REQUIRED = ("torch", "numpy", "scipy", "matplotlib", "seaborn", "h5py", "pandas", "scikit-learn", "pyhessian", "tqdm",
            "filelock", "psutil", "tomli-w", "Pillow")
ARCHIVES = {"cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
            "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz")}
GIB = 1024**3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_dir", type=Path, metavar="FOLDER",
                        help="where CIFAR lies (default: $LANDSCAPE_DATA_DIR, else ./datasets)")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the examination; exit status 0 where the toolkit can be used, else 2."""
    document = examine(_data_dir(args.data_dir))
    for line in _lines(document):
        say(args, line)
    emit_json(args, document)
    for problem in document["problems"]:
        print(f"landscape doctor: error: {problem}", file=sys.stderr)
    return 2 if document["problems"] else 0


def examine(data_dir: Path) -> dict[str, Any]:
    """Return versions, hardware, data, the time of one product, and what is missing, as plain values."""
    versions = {name: _version(name) for name in REQUIRED}
    problems = [f"{name} is not installed: python -m pip install {name}" for name in versions if not versions[name]]
    document = {"python": platform.python_version(), "platform": platform.platform(), "versions": versions,
                "cores": _cores(), "memory_gib": _memory() / GIB, "disk_free_gib": _disk_free() / GIB,
                "compiler": _compiler(), "devices": [], "product": None, "engines": {},
                "data": _data(data_dir, bool(versions["scikit-learn"]))}
    if sys.version_info < (3, 11):
        problems.append(f"Python {document['python']} is too old: expected 3.11 or newer")
    if versions["torch"]:
        document |= {"devices": _devices(), "product": _product(), "engines": _engines()}
        if document["product"]["asymmetry"] > 1e-4:
            problems.append("Hessian-vector products are not symmetric here: the torch installation is broken")
        if not any("product_ms" in engine for engine in document["engines"].values()):
            problems.append("no engine for Hessian-vector products works here: the torch installation is broken")
    return document | {"problems": problems, "good_for": _good_for(document)}


def _compiler() -> str | None:
    """Return the C++ compiler that torch.compile would use."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_words(Path("/sys/fs/cgroup/cpu.max"))    # "max 100000" or "200000 100000"
    if len(quota) == 2 and quota[0].isdecimal():
        allowed = min(allowed, max(1, round(int(quota[0]) / int(quota[1]))))
    return allowed


def _memory() -> int:
    """Return the bytes of memory this process may use: the machine's, or what its control group allows."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        words = _first_words(Path(limit))
        if words and words[0].isdecimal():
            machine = min(machine, int(words[0]))
    return machine


def _first_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def _disk_free() -> int:
    return shutil.disk_usage(Path.cwd()).free


def _devices() -> list[dict[str, Any]]:
    import torch
    cpu = platform.processor() or platform.machine()
    found = [{"name": "cpu", "description": cpu, "threads": torch.get_num_threads()}]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found.append({"name": f"cuda:{index}", "description": card.name, "memory_gib": card.total_memory / GIB})
    return found


def _product() -> dict[str, Any]:
    """Time one Hessian-vector product of a small network, and check u'Hv = v'Hu, on the best device there is."""
    import torch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(512, 64, generator=generator), torch.randint(10, (512,), generator=generator)
    layers = [torch.randn(*shape, generator=generator) / shape[0]**0.5 for shape in ((64, 64), (64, 10))]
    weights = [layer.to(device).requires_grad_() for layer in layers]
    u, v = ([torch.randn(w.shape, generator=generator).to(device) for w in weights] for _ in range(2))
    gradient, product = _gradient_and_product(inputs.to(device), labels.to(device), weights)
    Hu, Hv = product(u), product(v)
    uHv, vHu = (sum((a * b).sum().item() for a, b in zip(*pair)) for pair in ((u, Hv), (v, Hu)))
    size = (sum((a * a).sum().item() for a in u) * sum((b * b).sum().item() for b in Hv))**0.5
    return {"device": str(device), "parameters": sum(w.numel() for w in weights), "samples": len(inputs),
            "gradient_ms": _best_ms(gradient), "product_ms": _best_ms(lambda: product(v)),
            "asymmetry": abs(uHv - vHu) / size}


def _engines() -> dict[str, dict[str, Any]]:
    """Time a product by every engine that is not compiled, for a small convolutional network, in gradients; or say why not."""
    import torch
    from torch import nn

    from analysis.operators import HessianOperator
    from analysis.operators.products import ENGINES
    from landscape.errors import InputError
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2),
                              nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, 10)).to(device)
    batch = torch.randn(64, 3, 16, 16, generator=generator), torch.randint(10, (64,), generator=generator)
    found: dict[str, dict[str, Any]] = {}
    left_out = ("-compiled",) if device.type == "cuda" else ("-compiled", "-graphed")
    for name in (name for name in ENGINES if not name.endswith(left_out)):
        try:
            operator = HessianOperator(model, nn.CrossEntropyLoss(), [tuple(part.to(device) for part in batch)], engine=name)
        except InputError as reason:
            found[name] = {"reason": str(reason)}
            continue
        v = torch.ones(operator.size, dtype=operator.dtype, device=device)
        times = {"product_ms": _best_ms(lambda: operator.matvec(v), 5), "gradient_ms": _best_ms(operator.gradient, 5)}
        found[name] = times | {"gradients": times["product_ms"] / times["gradient_ms"]}
    return found


def _gradient_and_product(inputs: Any, labels: Any, weights: list) -> tuple:
    import torch

    def gradient(create_graph: bool = False):
        logits = torch.tanh(inputs @ weights[0]) @ weights[1]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return torch.autograd.grad(loss, weights, create_graph=create_graph)

    def product(vector):
        return torch.autograd.grad(gradient(create_graph=True), weights, grad_outputs=vector)

    return gradient, product


def _best_ms(action: Any, repetitions: int = 10) -> float:
    import torch
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def _data_dir(given: Path | None) -> Path:
    return given or Path(os.environ.get("LANDSCAPE_DATA_DIR") or "datasets")


def _data(folder: Path, has_scikit_learn: bool) -> dict[str, str]:
    found = {"digits": "embedded (scikit-learn)" if has_scikit_learn else "missing: install scikit-learn"}
    for name, (extracted, archive) in ARCHIVES.items():
        here = [path for path in (folder / extracted, folder / archive) if path.exists()]
        found[name] = (f"found at {here[0]}" if here else
                       f"missing: put {archive}, or its folder {extracted}, into {folder}; else it is downloaded")
    return found


def _good_for(document: dict[str, Any]) -> str:
    cards = [device["memory_gib"] for device in document["devices"] if device["name"].startswith("cuda")]
    if not document["devices"]:
        return "drawing figures from stored records; training and spectra need torch"
    if cards and max(cards) >= 8:
        return ("everything: the digits study in minutes, CIFAR-100-LT with resnet32 over 200 epochs in hours or less, "
                "spectra of whole class groups")
    if cards:
        return "the digits study in minutes, CIFAR-LT training with small batches; spectra of subsets of a class group"
    if document["memory_gib"] and document["memory_gib"] < 4:
        return "the digits study, one command at a time; CIFAR needs more than 4 GiB of memory"
    return ("the digits study (landscape study digits) in minutes, and a few epochs of CIFAR-LT with resnet20 with "
            "spectra of subsets; the papers' 200-epoch tables want a GPU")


def _lines(document: dict[str, Any]) -> list[str]:
    product = document["product"]
    hardware = [f"{device['name']}: {device['description']}, " + (
        f"{device['memory_gib']:.0f} GiB" if "memory_gib" in device else f"{device['threads']} threads")
        for device in document["devices"]]
    engines = [f"{name} {engine['gradients']:.1f} gradients ({engine['product_ms']:.2f} ms)" if "gradients" in engine else
               f"{name} does not serve: {engine['reason']}" for name, engine in document["engines"].items()]
    timed = product and (f"one product {product['product_ms']:.2f} ms, gradient {product['gradient_ms']:.2f} ms "
                         f"({product['parameters']} parameters, {product['samples']} samples, {product['device']})")
    return [
        f"python    {document['python']} on {document['platform']}",
        "libraries " + ", ".join(f"{name} {found or 'MISSING'}" for name, found in document["versions"].items()),
        *(f"device    {line}" for line in hardware),
        f"machine   {document['cores']} cores, {document['memory_gib']:.1f} GiB memory, "
        f"{document['disk_free_gib']:.0f} GiB disk free here, compiler {document['compiler'] or 'none'}",
        f"hessian   {timed or 'not timed'}",
        f"engines   {', '.join(engines) or 'not timed'}, for one product of a small convolutional network; "
        f"compiled ones {'can be asked for' if document['compiler'] else 'need a C++ compiler, which is not found'}",
        *(f"data      {name}: {state}" for name, state in document["data"].items()),
        f"good for  {document['good_for']}",
        "not ready: see the errors" if document["problems"] else "ready; next: landscape study digits --out runs/digits"
    ]
