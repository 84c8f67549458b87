"""The name of the check that failed, in its error."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def naming(check: str, of: str) -> Iterator[None]:
    """Context manager: names a check in the errors that are raised inside.

    Args:
      check: name of the check.
      of: what is checked, "pruner" or "algorithm".

    Raises:
      AssertionError: in place of one that is raised inside, with the name before its
        message. To all other errors, a note with the name is added.
    """
    try:
        yield
    except AssertionError as error:
        message = f"The {of} fails the check {check!r}: {str(error).strip()}"
        raise AssertionError(message) from error
    except Exception as error:
        error.add_note(
            f"The {of} raised this in the check {check!r} of jprune.testing."
        )
        raise
