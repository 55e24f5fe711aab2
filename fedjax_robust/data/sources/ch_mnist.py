"""CH-MNIST from its publishers' files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fedjax_robust.data.sources.bundled import random_split
from fedjax_robust.data.sources.cache import cached
from fedjax_robust.data.sources.files import (
    Arrays,
    Dataset,
    beginning,
    data_folder,
    text_table,
    unit_range,
)
from fedjax_robust.types import Key

_TISSUES = ("tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose", "empty")
_CH_MNIST_CSV = "hmnist_64_64_L.csv"
_CH_MNIST_TILES = "Kather_texture_2016_image_tiles_5000"
_CH_MNIST_IMAGES = 5_000
_KAGGLE = "https://www.kaggle.com/datasets/kmader/colorectal-histology-mnist"
_ZENODO = "https://zenodo.org/records/53169"


# CH-MNIST


def ch_mnist_dataset(key: Key, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Colorectal histology (Kather et al., Scientific Reports 6, 27988, 2016), gray, 64x64.

    Fang et al. (USENIX Security 2020) use the csv and a random 4000/1000 split.
    """
    root = data_folder(data_dir)
    csv = next((p for d in _ch_mnist_folders(root) if (p := d / _CH_MNIST_CSV).is_file()), None)
    tiles = None if csv else _tile_folder(root)
    if csv:
        arrays = cached("ch_mnist", [csv], lambda: _read_ch_mnist_csv(csv))
        note = ""
    elif tiles:
        files = sorted(tiles.glob("0[1-8]_*/*.tif"))
        if not files:
            raise ValueError(
                f"load('ch_mnist'): no tiles 01_TUMOR/*.tif ... 08_EMPTY/*.tif in {tiles}; "
                "unpack the archive again"
            )
        arrays = cached("ch_mnist", files, lambda: _read_ch_mnist_tiles(files))
        note = "; made from the RGB tiles (bilinear), not from the published 64x64 csv"
    else:
        raise FileNotFoundError(
            f"load('ch_mnist'): neither {_CH_MNIST_CSV} nor {_CH_MNIST_TILES}/ is in "
            f"{' or '.join(str(d) for d in _ch_mnist_folders(root))}. Point data_dir or "
            "FEDJAX_ROBUST_DATA at the folder that holds one of them, or fetch it by hand:\n"
            f"  {_CH_MNIST_CSV} from {_KAGGLE} (a free account is needed), "
            f"to be put in {root / 'ch_mnist'}, or\n"
            f"  {_CH_MNIST_TILES}.zip from {_ZENODO}, to be unpacked there"
        )
    train, test = random_split(key, unit_range(arrays["x"]), arrays["y"].astype(np.int32))
    images = len(arrays["y"])
    split = f"random split {len(train['y'])}/{len(test['y'])}"
    if images != _CH_MNIST_IMAGES:
        split += f" of {images:,} images (the published set has {_CH_MNIST_IMAGES:,})"
    return Dataset(train, test, 8, "ch_mnist", split + note, _TISSUES)


def _ch_mnist_folders(root: Path) -> tuple[Path, Path]:
    return root, root / "ch_mnist"


def _tile_folder(root: Path) -> Path | None:
    # Kaggle's copy nests the folder in itself and spells the outer one in lower case.
    for base in _ch_mnist_folders(root):
        for spelling in (_CH_MNIST_TILES, _CH_MNIST_TILES.lower()):
            for folder in (base / spelling / _CH_MNIST_TILES, base / spelling):
                if folder.is_dir():
                    return folder
    return None


def _read_ch_mnist_csv(path: Path) -> Arrays:
    """Columns pixel0000 .. pixel4095 (row by row, 0 .. 255) and label (1 .. 8)."""
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline(200_000).strip().replace('"', "").split(",")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); fetch it again") from error
    if len(header) != 4097 or header[-1] != "label":
        raise ValueError(
            f"{path} must have the 4,097 columns pixel0000,...,pixel4095,label, got {len(header)} "
            f"with the last one named {beginning(header[-1])}; take {_CH_MNIST_CSV}, not another size"
        )
    table = text_table(path, np.int32, delimiter=",", skiprows=1)
    x, y = table[:, :-1], table[:, -1]
    if not len(y) or x.min() < 0 or x.max() > 255 or y.min() < 1 or y.max() > 8:
        raise ValueError(
            f"{path} must hold pixels in 0..255 and labels in 1..8; it is damaged, fetch it again"
        )
    return {"x": x.reshape(-1, 64, 64, 1).astype(np.uint8), "y": (y - 1).astype(np.uint8)}


def _read_ch_mnist_tiles(files: list[Path]) -> Arrays:
    from PIL import Image

    images = []
    for path in tqdm(files, desc="decoding ch_mnist", delay=1.0, mininterval=1.0, leave=False):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=["TIFF"]) as tile:  # reads the header alone
                    if tile.size != (150, 150):
                        raise ValueError(
                            f"it has {tile.size[0]}x{tile.size[1]} pixels, not 150x150"
                        )
                    gray = tile.convert("L").resize((64, 64), Image.Resampling.BILINEAR)
        except Exception as error:  # PIL's errors are of many kinds
            raise ValueError(f"{path} is no tile ({error}); unpack the archive again") from error
        images.append(np.asarray(gray, np.uint8)[..., None])
    labels = [int(path.parent.name[:2]) - 1 for path in files]
    return {"x": np.stack(images), "y": np.asarray(labels, np.uint8)}
