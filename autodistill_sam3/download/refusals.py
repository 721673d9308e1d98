"""What the hub answered -> what to do about it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from autodistill_sam3.download.files import Source
from autodistill_sam3.errors import AccessError, DownloadError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_GO_ON = "What was received is kept; the same command goes on from there."


def explain_status(error: HfHubHTTPError, host: str, source: Source, no_token: str) -> DownloadError:
    """The error for an answer that is not the file.

    Args:
        error: The answer.
        host: Who gave it.
        source: What was asked for.
        no_token: Why no token was sent; empty if one was.
    """
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(
            f"Expected a branch, tag or full commit of {source.repository} as --revision, received "
            f"{source.revision!r}, which {host} does not have. {source.page}/commits/main lists the commits."
        )
    if isinstance(error, GatedRepoError) or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AccessError(_access_message(status, host, source, no_token))
    if isinstance(error, EntryNotFoundError):
        return DownloadError(f"A file of {source.repository} is gone from {host}. Run the same command again.")
    return DownloadError(_other_message(status, host, source))


def explain_transport(error: Exception, host: str) -> DownloadError:
    """The error for a connection that cannot be made, breaks or stalls."""
    reason = str(error).strip().splitlines()
    return DownloadError(
        f"The connection to {host} failed ({reason[0] if reason else type(error).__name__}). {_GO_ON} If it fails "
        "again, check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT."
    )


def _other_message(status: int, host: str, source: Source) -> str:
    expected = f"Expected {host} to send files of {source.repository}, received {status}"
    if status == HTTPStatus.NOT_FOUND:
        return f"{expected}: it has none. If HF_ENDPOINT names a mirror, unset it; otherwise see {source.page}."
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return f"{expected}: a file is shorter than announced. It was removed: run the same command again."
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"{expected}: too many requests. Wait some minutes. {_GO_ON}"
    return f"{expected}. {_GO_ON}"


def _access_message(status: int, host: str, source: Source, no_token: str) -> str:
    if no_token:
        reason = f"No Hugging Face token was sent: {no_token}."
    elif status == HTTPStatus.UNAUTHORIZED:
        reason = "The Hugging Face token that was sent is not accepted; it may be mistyped, expired or revoked."
    else:
        reason = "The account of the Hugging Face token that was sent has no access, or the token may not use it."
    if not source.gated:
        steps = ["This model needs no token: unset HF_TOKEN, or run `hf auth login` (or `hf auth logout`)."]
    else:
        steps = [
            f"Request access on {source.page} and wait until it is granted.",
            "Run `hf auth login` with a token of that account that may read gated repositories, or set HF_TOKEN to it.",
        ]
    steps.append("Run the same command again.")
    numbered = "\n".join(f"  {number}. {step}" for number, step in enumerate(steps, 1))
    return (
        f"{host} refuses the files of {source.repository} ({int(status)}). {reason}\n{numbered}\n"
        f"Or copy the files from a machine that has them to {source.folder}/."
    )
