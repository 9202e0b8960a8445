"""nnU-Net v2's two ways from logits to the scan's grid, for `benchmarks/back_to_grid.py`; runs in nnU-Net's Python."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import measured


def main() -> None:
    """WAY LOGITS OUT SETTINGS: print the figures, write the labels."""
    way, logits_file, out, settings_text = sys.argv[1:]
    settings = json.loads(settings_text)
    torch.set_num_threads(1)
    logits = np.load(logits_file)
    shape, spacing, working = settings["shape"], settings["spacing_mm"], [settings["working_mm"]] * 3

    def default() -> np.ndarray:
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

        return resample_data_or_seg_to_shape(logits, shape, working, spacing, order=1, order_z=0).argmax(0)

    def by_torch() -> np.ndarray:
        from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

        found = resample_torch_fornnunet(logits, shape, working, spacing, num_threads=1)
        return np.asarray(torch.as_tensor(found).argmax(0))

    if way == "nnU-Net torch":
        import nnunetv2.preprocessing.resampling.resample_torch
    else:
        import nnunetv2.preprocessing.resampling.default_resampling  # noqa: F401 # imports are not timed
    label, figures = measured(by_torch if way == "nnU-Net torch" else default)
    np.save(out, label.astype(np.uint8))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
