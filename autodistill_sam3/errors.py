"""Every exception that this package raises on purpose.

    AutodistillSAM3Error
    ├── ImageError              an input that cannot be read as an image          (also ValueError)
    ├── VideoError              an input that cannot be read as a clip            (also ValueError)
    ├── OntologyError           no prompts, or prompts no model can take          (also ValueError)
    ├── SettingError            a keyword or flag out of its range                (also ValueError)
    ├── DeviceError             a device that this machine does not have          (also RuntimeError)
    │   └── OutOfMemoryError    a batch that does not fit the device's memory     (also MemoryError)
    ├── MissingPackageError     an optional package that is not installed         (also ImportError)
    ├── CheckpointError         a checkpoint that cannot be used as it is         (also ValueError)
    │   └── CheckpointNotFoundError   none in any of the places looked at         (also FileNotFoundError)
    ├── DownloadError           a download that cannot start or finish            (also RuntimeError)
    │   └── AccessError         the hub refuses the files                         (also PermissionError)
    └── LabelingError           a labelling run that cannot start or go on        (also RuntimeError)
        ├── InputFolderError    nothing there to label                            (also FileNotFoundError)
        └── OutputFolderError   a folder that a run must not write into           (also FileExistsError)

Messages say what was expected, what was received, and what to do next.
"""


class AutodistillSAM3Error(Exception):
    """Base of all errors of this package."""


class ImageError(AutodistillSAM3Error, ValueError):
    """An input cannot be read as an image."""


class VideoError(AutodistillSAM3Error, ValueError):
    """An input cannot be read as a clip, or has no frames."""


class OntologyError(AutodistillSAM3Error, ValueError):
    """An ontology has no prompts, or prompts that cannot be used."""


class SettingError(AutodistillSAM3Error, ValueError):
    """A setting is of the wrong kind or out of its range."""


class DeviceError(AutodistillSAM3Error, RuntimeError):
    """The device asked for is not on this machine."""


class OutOfMemoryError(DeviceError, MemoryError):
    """A batch does not fit the memory of the device."""


class MissingPackageError(AutodistillSAM3Error, ImportError):
    """A package that only this feature needs is not installed, or cannot be imported."""


class CheckpointError(AutodistillSAM3Error, ValueError):
    """A checkpoint was found and cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint in any of the places looked at."""


class DownloadError(AutodistillSAM3Error, RuntimeError):
    """A download cannot start or finish. Nothing half-received has a final name."""


class AccessError(DownloadError, PermissionError):
    """The hub refuses the files: access was not granted, or the token is missing or not accepted."""


class LabelingError(AutodistillSAM3Error, RuntimeError):
    """A labelling run cannot start or go on. What it finished stays valid."""


class InputFolderError(LabelingError, FileNotFoundError):
    """There is nothing to label where the run was pointed at."""


class OutputFolderError(LabelingError, FileExistsError):
    """The output folder belongs to something else."""
