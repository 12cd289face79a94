"""Certified radii: how far every pixel vector may move before the prediction can change. One method a file."""

from mondeq.certificates.base import CERTIFICATES, Certificate, Certifier, Prepared, Report, certify
from mondeq.certificates.boxes import Boxes
from mondeq.certificates.gaps import Gaps
from mondeq.certificates.local import Local

__all__ = ["CERTIFICATES", "Boxes", "Certificate", "Certifier", "Gaps", "Local", "Prepared", "Report", "certify"]
