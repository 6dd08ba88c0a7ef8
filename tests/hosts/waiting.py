# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Waiting, for tests that look at another process until it is as it should be.

Nothing is measured with this: the guard ends a test that hangs.
"""

import time
from typing import Any, Callable, Type


def wait_until(what: str, condition: Callable[[], Any], guard: float,
               failure: Type[Exception]) -> Any:
    """
    Calls condition() until it returns something true, and returns that.

    :raise failure: when that has not come for so many seconds.
    """
    end = time.monotonic() + guard
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise failure(f'waited {guard} s in vain for {what}')
        time.sleep(0.01)
