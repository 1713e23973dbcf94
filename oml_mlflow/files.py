"""Files that hold names or states: nobody but their owner reads them, whatever the umask is."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def keep_private(path: Path) -> None:
    """Make a file that only its owner can read and write, or shut others out of one that is there.

    A file that its group may write is shared on purpose, and stays the group's. One that is not
    ours, or no regular file, is left as it is. None that exists is opened: to close it would end
    the locks that this process holds on it (POSIX).

    Raises:
        OSError: If it can't be made.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        found = path.stat()
        wanted = found.st_mode & (0o660 if found.st_mode & stat.S_IWGRP else 0o600)
        is_ours = os.name == "posix" and found.st_uid == os.geteuid()
        if is_ours and stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) != wanted:
            path.chmod(wanted)
