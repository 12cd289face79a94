"""A run as one page of HTML: figures, curves, tables and pictures, with nothing outside the file."""

from mondeq.report.contents import Contents, Picture
from mondeq.report.page import compose, is_of_run

__all__ = ["Contents", "Picture", "compose", "is_of_run"]
