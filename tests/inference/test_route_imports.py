"""What the prediction route loads beside torch: each of these costs every process its time, so the list is short."""

import subprocess
import sys

import pytest

OF_TORCH = {"numpy", "torch", "torchgen", "tqdm", "typing_extensions"}
SMALL = {"cc3d", "edt", "fastremap", "fill_voids", "isal", "psutil"}  # a few milliseconds each
PAGES = {"PIL", "jinja2", "markupsafe"}
COMMAND = {"annotated_doc", "shellingham", "typer"}
TOLD = (
    "import sys, sysconfig; from pathlib import Path\n"
    "place = Path(sysconfig.get_paths()['purelib'])\n"
    "files = [getattr(module, '__file__', None) for module in list(sys.modules.values())]\n"
    "inside = [Path(file).relative_to(place) for file in files if file and Path(file).is_relative_to(place)]\n"
    "print(*sorted({path.parts[0].partition('.')[0] for path in inside}))\n"
)


def loaded(program):
    done = subprocess.run([sys.executable, "-c", program + "\n" + TOLD], capture_output=True, text=True, check=True)
    installers = {"_distutils_hack", "sitecustomize"}
    return {name for name in done.stdout.split() if name not in installers and not name.startswith("__editable__")}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("medseg.inference.predictor", OF_TORCH | SMALL),
        ("medseg.inference.stages", OF_TORCH | SMALL | PAGES),
        ("medseg.inference.batch", {"numpy", *SMALL}),
        ("medseg.reading", {"numpy", *SMALL}),
        ("medseg.writing", {"numpy", "isal"}),
        ("medseg.cli", COMMAND),
    ],
)
def test_the_route_loads_what_it_needs_and_no_more(module, allowed):
    assert loaded(f"import {module}") <= allowed


def test_a_scan_is_read_and_a_mask_written_without_nibabel(tmp_path):
    program = (
        "import numpy as np\n"
        "from medseg.reading import read_scan\n"
        "from medseg.writing import write_nifti\n"
        f"write_nifti(np.zeros((4, 5, 6), np.int16), np.eye(4), {str(tmp_path / 'scan.nii.gz')!r})\n"
        f"read_scan({str(tmp_path / 'scan.nii.gz')!r})"
    )
    assert loaded(program) <= {"numpy", *SMALL}


def test_collections_go_on_once_torch_is_there():
    program = (
        "import gc, sys; import medseg.quick_torch; assert gc.isenabled() and 'torch' in sys.modules\n"
        "assert gc.get_freeze_count() > 10_000"
    )
    assert "torch" in loaded(program)


def test_collections_that_were_off_stay_off():
    assert "torch" in loaded("import gc; gc.disable(); import medseg.quick_torch; assert not gc.isenabled()")


def test_where_torch_is_there_already_nothing_is_frozen():
    assert "torch" in loaded("import gc, torch; import medseg.quick_torch; assert gc.get_freeze_count() == 0")
