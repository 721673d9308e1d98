"""What a labelling run would use on this machine, and whether it works."""

from autodistill_sam3.doctor.diagnosis import diagnose
from autodistill_sam3.doctor.report import Finding, Report, format_report

__all__ = ["Finding", "Report", "diagnose", "format_report"]
