import json
import subprocess
import sys

from medseg.info import described, offered


def test_a_network_is_listed_with_its_parameters():
    unet = offered()["networks"]["medseg.networks.UNet"]
    assert unet["about"].startswith("U-Net: ")
    assert unet["parameters"]["spatial_dims"] == {"type": "int", "required": True}
    assert unet["parameters"]["blocks_per_level"] == {"type": "int", "required": False, "default": 2}


def test_every_kind_has_entries_and_each_says_what_it_is():
    found = offered()
    assert all(found.values())
    assert "medseg.losses.DiceCrossEntropy" in found["losses"]
    assert "medseg.cleanup.KeepLargest" in found["cleanup"]
    assert "medseg.cleanup.CleanupRule" not in found["cleanup"]  # a protocol, not a rule
    assert "medseg.crf.DenseCRF" in found["cleanup"]
    assert "medseg.crf.CRFasRNN" not in found["cleanup"]  # a layer
    assert found["encoders"].keys() == {"medseg.networks.encoders.ResNet", "medseg.networks.encoders.VGG"}
    assert not [path for parts in found.values() for path, part in parts.items() if not part["about"]]


def test_a_parameter_without_type_or_default_is_required():
    def scale(image, factor: float = 2.0):
        """Scale it."""

    assert described(scale) == {
        "about": "Scale it.",
        "parameters": {
            "image": {"required": True},
            "factor": {"type": "float", "required": False, "default": 2.0},
        },
    }


def test_the_command_prints_json():
    done = subprocess.run([sys.executable, "-m", "medseg.cli", "info", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["networks"].keys() == offered()["networks"].keys()


def test_the_command_prints_a_line_each():
    done = subprocess.run([sys.executable, "-m", "medseg.cli", "info"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(line.strip().startswith("medseg.networks.UNet") for line in done.stdout.splitlines())
