"""MONAI's chain for `benchmarks/predict.py`, as its model zoo predicts: dictionary transforms, windows, Invertd.

In place of `CropForegroundd` stands a crop to the box that medseg finds, so that both see the same windows; it costs
MONAI less than its own. One window a pass, which is its fastest on a CPU.
"""

from predict_stages import Stages, parsed, threads, write

job, out, precision = parsed()
stages = Stages()
with stages("import"):
    import torch
    from monai.data import MetaTensor
    from monai.inferers import sliding_window_inference
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
        SpatialCropd,
    )

    from medseg.networks import UNet  # plain torch

torch.set_num_threads(threads())
with stages("model"):
    network = UNet(**job["network"]).eval()
    network.load_state_dict(torch.load(job["weights"], weights_only=True))
    stages.watch(network)
low, high = job["window_hu"]
preparing = Compose(
    [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=job["spacing_mm"], mode="bilinear"),
        ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
        SpatialCropd("image", roi_start=job["start"], roi_end=job["stop"]),
        EnsureTyped("image"),
    ]
)
back = Invertd("pred", preparing, orig_keys="image", nearest_interp=False, to_tensor=True)
winner = AsDiscreted("pred", argmax=True)
save = SaveImaged("pred", output_dir=out, output_postfix="mask", separate_folder=False, output_dtype="uint8")
with torch.inference_mode():
    with stages("read and prepare"):
        sample = preparing({"image": job["scan"]})
        batch = {"image": sample["image"][None]}
    with stages("windows"), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        batch["pred"] = sliding_window_inference(
            batch["image"], job["patch_size"], 1, network, overlap=job["overlap"], mode="gaussian"
        )
    with stages("logits back, winner"):
        sample["pred"] = MetaTensor(batch["pred"][0].float(), meta=sample["image"].meta)
        del batch
        done = back(sample)
        if job.get("logits"):
            import numpy as np

            np.save(out / "logits.npy", done["pred"].numpy())
        done = winner(done)
    with stages("write"):
        save(done)
write([stages], out)
