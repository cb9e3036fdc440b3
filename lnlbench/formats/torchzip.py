"""The zip container of ``torch.save``, as far as it holds plain values and NumPy arrays.

Such a file is a zip archive without compression whose member ``<any name>/data.pkl`` is a pickle. Only that member is
read, and by :func:`lnlbench.formats.pickles.load_plain_pickle`, which executes nothing. Tensors lie in members of their
own that the pickle refers to; such a reference is refused.
"""

from __future__ import annotations

import io
import re
import zipfile

from lnlbench.errors import DataError
from lnlbench.formats.messages import reason
from lnlbench.formats.pickles import load_plain_pickle

_PICKLE = re.compile(r"[^/\\]+/data\.pkl")
_MOST_MEMBERS = 1_000


class _RefusedError(Exception):
    """Internal: the container is not what is expected."""


def load_torch_zip(data: bytes, limit: int, source: str) -> object:
    """Read what ``torch.save`` wrote for a value without tensors.

    Args:
        data: The complete file.
        limit: The most bytes its pickle may have.
        source: How error messages name the file.

    Returns:
        Plain values and arrays, as from :func:`lnlbench.formats.pickles.load_plain_pickle`.

    Raises:
        DataError: It is damaged or too large, or holds anything else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            content = _read_pickle(archive, limit)
    # Damaged input makes the module raise nearly anything: BadZipFile, NotImplementedError, RuntimeError, ...
    except Exception as error:
        raise DataError(f"{source}: not a file of torch.save: {reason(error)}; fetch it again") from error
    return load_plain_pickle(content, source)


def _read_pickle(archive: zipfile.ZipFile, limit: int) -> bytes:
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise _RefusedError(f"more than {_MOST_MEMBERS:,} members")
    pickles = [member for member in members if _PICKLE.fullmatch(member.filename)]
    if len(pickles) != 1:
        raise _RefusedError(f"{len(pickles)} members are named <folder>/data.pkl, expected one")
    (member,) = pickles
    # PyTorch compresses nothing, so nothing can unpack to more than there is.
    if member.compress_type != zipfile.ZIP_STORED:
        raise _RefusedError(f"member {member.filename!r} is compressed")
    if member.file_size > limit:
        raise _RefusedError(f"member {member.filename!r} has {member.file_size:,} bytes, expected at most {limit:,}")
    content = archive.read(member)
    if len(content) != member.file_size:
        raise _RefusedError(f"member {member.filename!r} is cut off")
    return content
