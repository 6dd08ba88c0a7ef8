# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""What goes wrong, in words for the user."""


class Trouble(Exception):
    """The text, one line, says what is wrong and what to do."""


class Ended(Trouble):
    """A VM is not there any more."""


class Refused(Exception):
    """QEMU refuses a command, in its own words."""


class NotOffered(Refused):
    """This QEMU does not know the command."""
