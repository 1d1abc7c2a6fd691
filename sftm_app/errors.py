"""Every error that SFTM Studio raises on purpose.

    SFTMError                    base of all; its text is a sentence for the person who reads it
    ├── InputError               what was given cannot be used            (exit code 2)
    │   ├── CheckpointError      a folder or file of weights is unusable
    │   ├── HubError             a model on the hub cannot be found, reached, accessed or used
    │   │   └── NotDownloadedError  a recipe names models of the hub that are not on this machine
    │   ├── CompatibilityError   base and tasks do not fit together; holds every problem found
    │   ├── RecipeError          a recipe or an option is invalid
    │   ├── OutputError          the output folder cannot be written
    │   └── SampleError          a sample to try a model on is unusable
    ├── NumericalError           NaN, Inf, or a factorisation or solve that failed
    ├── MethodError              a merge method failed, or broke its contract
    ├── ResourceError            out of memory or disk                     (exit code 3)
    ├── JobError                 a run died or cannot be started
    └── Cancelled                a person cancelled it                     (exit code 130)

A text says what is wrong and where, what was expected and found, and what to do next. It has no traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class SFTMError(Exception):
    """Base of all errors whose text is meant for a person."""

    exit_code = 1


class InputError(SFTMError):
    """What was given cannot be used. Nothing was computed or written."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint folder or weight file is missing, damaged or of an unknown kind."""


class HubError(InputError):
    """A model on the Hugging Face hub cannot be found, reached, accessed or used."""


class NotDownloadedError(HubError):
    """A recipe names models of the hub that are not on this machine. `base` and `tasks` are as the recipe has them."""

    def __init__(self, missing: Sequence[str], base: str, tasks: Sequence[str]) -> None:
        self.base, self.tasks = base, tuple(tasks)
        one = len(missing) == 1
        super().__init__(
            f"{'This model is' if one else 'These models are'} not on this machine: {', '.join(missing)}. Download "
            f"{'it' if one else 'them'} with `sftm fetch {' '.join(missing)}`, or in the app under From the Hugging "
            "Face hub on the Models tab; then try again."
        )


class CompatibilityError(InputError):
    """Base and task checkpoints do not fit together. `problems` holds one sentence for each mismatch."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class RecipeError(InputError):
    """A recipe file, a parameter or an option is invalid."""


class OutputError(InputError):
    """The output folder exists, is an input, or cannot be written."""


class SampleError(InputError):
    """A sample to try a model on is unusable."""


class NumericalError(SFTMError):
    """A tensor holds NaN or Inf, or every factorisation or solve failed."""

    exit_code = 2


class MethodError(SFTMError):
    """A merge method failed, or returned what cannot be added to the base. The fault is in the method's code."""


class ResourceError(SFTMError):
    """Memory or disk space ran out."""

    exit_code = 3


class JobError(SFTMError):
    """A run could not be started, or its worker process died."""


class Cancelled(SFTMError):
    """A person cancelled. No half-written file is left behind."""

    exit_code = 130
