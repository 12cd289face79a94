"""Presets by name: functions of a few settings that make the pieces of a network. One file each."""

from mondeq.presets.base import PRESETS, Images, Preset
from mondeq.presets.certified import CertifiedPreset
from mondeq.presets.classifier import Classifier, ModelConfig
from mondeq.presets.convolutional import ConvPreset, MultiscalePreset
from mondeq.presets.dense import DensePreset
from mondeq.presets.interval import IntervalPreset
from mondeq.presets.lipschitz import LipschitzPreset

__all__ = [
    "PRESETS",
    "CertifiedPreset",
    "Classifier",
    "ConvPreset",
    "DensePreset",
    "Images",
    "IntervalPreset",
    "LipschitzPreset",
    "ModelConfig",
    "MultiscalePreset",
    "Preset",
]
