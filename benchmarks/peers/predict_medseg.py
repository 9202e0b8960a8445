"""medseg's route for `benchmarks/predict.py`, stage by stage; the second case finds model and allocator warm."""

import atexit
import gc

from predict_stages import Stages, parsed, threads, write

atexit.register(gc.freeze)  # as the `medseg` command does
job, out, precision = parsed()
cold, warm = Stages(), Stages()
with cold("import"):
    import medseg.quick_torch  # noqa: F401  # isort: skip (before torch)
    import torch

    from medseg.bundle import open_bundle
    from medseg.inference import Predictor
    from medseg.reading import read_channels
    from medseg.reading.plausibility import check_hu
    from medseg.writing import write_nifti

torch.set_num_threads(threads())
with cold("model"):
    bundle = open_bundle(job["bundle"])
    predictor = Predictor.from_bundle(bundle, precision=precision)
for stages in (cold, warm):
    predictor.network._forward_hooks.clear()
    predictor.network._forward_pre_hooks.clear()
    stages.watch(predictor.network)
    with stages("read"):
        scans = [check_hu(scan, "case") for scan in read_channels([job["scan"]], bundle.channels)]
    with stages("prepare"):
        prepared = predictor.prepare(scans)
    with stages("windows, logits back, winner"):
        label = predictor.segment(prepared)
    with stages("clean up, write, read back"):
        label, _ = predictor.finish(label, scans)
        write_nifti(label, scans[0].affine, out / "mask.nii.gz")
    if job["cases"] == 1:
        break
write([cold, warm] if job["cases"] > 1 else [cold], out)
