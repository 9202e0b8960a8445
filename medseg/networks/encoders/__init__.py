"""Encoders: an image becomes a pyramid of features; published weights load, and inflate from 2D to 3D."""

from medseg.networks.encoders.build import Encoder, build_encoder
from medseg.networks.encoders.inflation import inflate
from medseg.networks.encoders.resnet import ResNet
from medseg.networks.encoders.vgg import VGG
from medseg.networks.encoders.weights import LoadedWeights, load_weights

__all__ = ["VGG", "Encoder", "LoadedWeights", "ResNet", "build_encoder", "inflate", "load_weights"]
