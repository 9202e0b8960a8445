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


def test_collections_go_on_once_torch_is_there_and_what_the_caller_had_is_freed():
    program = (
        "import gc, sys, weakref\n"
        "class Owner: pass\n"
        "owner = Owner(); owner.itself = owner; seen = weakref.ref(owner)\n"
        "import medseg.inference.predictor\n"
        "assert gc.isenabled() and 'torch' in sys.modules\n"
        "del owner; gc.collect(); assert seen() is None"
    )
    assert "torch" in loaded(program)


def test_the_command_leaves_without_looking_for_garbage():
    program = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 1000))\n"  # the last to be called
        "from medseg.cli import main\n"
        "sys.argv = ['medseg', '--version']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "frozen True"


def test_collections_that_were_off_stay_off():
    assert "torch" in loaded("import gc; gc.disable(); import medseg.quick_torch; assert not gc.isenabled()")
