"""nnU-Net v2's predictor for `benchmarks/predict.py`; runs in an environment of its own, with its public classes.

It is given the scan cropped to the box that medseg finds, the same network and the window of HU in the place of its
percentiles; no mirroring. Its windows are spread evenly over the volume, its image is resampled with cubic splines: its
defaults. `--precision` does nothing, on a CPU it has float32 alone.
"""

import os

from predict_stages import Stages, parsed, threads, write

job, out, _ = parsed()
stages = Stages()
os.environ |= {"nnUNet_def_n_proc": str(threads()), "nnUNet_wandb_enabled": "0"}
with stages("import"):
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from medseg.networks import UNet  # plain torch


class AsStored(torch.nn.Module):
    """The network on axes as SimpleITK has them, slices first."""

    def __init__(self, network: torch.nn.Module, flips: list[int]) -> None:
        super().__init__()
        self.network, self.flips = network, flips

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Windows `(N, 1, Z, Y, X)` -> logits on the same grid."""
        return self.network(image.permute(0, 1, 4, 3, 2).flip(self.flips)).flip(self.flips).permute(0, 1, 4, 3, 2)


def resampling(*, order: int, is_seg: bool = False) -> dict[str, object]:
    """Of its default function."""
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


low, high = job["window_hu"]
default = "resample_data_or_seg_to_shape"
configuration = {
    "data_identifier": "benchmark",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": job["patch_size"],
    "median_image_size_in_voxels": job["patch_size"],
    "spacing": job["spacing_mm"][::-1],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": default,
    "resampling_fn_data_kwargs": resampling(order=3),
    "resampling_fn_seg": default,
    "resampling_fn_seg_kwargs": resampling(order=1, is_seg=True),
    "resampling_fn_probabilities": default,
    "resampling_fn_probabilities_kwargs": resampling(order=1),
    "architecture": {},
    "batch_dice": False,
}
ct = {"mean": low, "std": high - low, "percentile_00_5": low, "percentile_99_5": high}
plans = PlansManager(
    {
        "dataset_name": "benchmark",
        "plans_name": "benchmark",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": ct},
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
    }
)
dataset = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0} | {f"class {index}": index for index in range(1, job["network"]["out_channels"])},
    "file_ending": ".nii.gz",
}
torch.set_num_threads(threads())
with stages("model"):
    network = UNet(**job["network"]).eval()
    network.load_state_dict(torch.load(job["weights"], weights_only=True))
    stages.watch(network)
    predictor = nnUNetPredictor(1 - job["overlap"], use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    chosen = plans.get_configuration("3d_fullres")
    stored = AsStored(network, job["flips"])
    predictor.manual_initialization(stored, plans, chosen, [stored.state_dict()], dataset, "benchmark", None)
with torch.inference_mode():
    with stages("read"):
        image, properties = SimpleITKIO().read_images([job["cropped_scan"]])
    with stages("prepare"):
        preprocessor = chosen.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(image, None, properties, plans, chosen, dataset)
    with stages("windows"):
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    with stages("logits back, winner, write"):
        export_prediction_from_logits(logits, properties, chosen, plans, dataset, str(out / "mask"))
write([stages], out)
