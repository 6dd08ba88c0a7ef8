# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The documents, and the literal blocks in them.

Knows Markdown and RST as far as the documents use them; does not know what
stands in the blocks.
"""

import re
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = ('*.md', 'docs/system/devices/*.rst', 'docs/devel/*.rst')


def documents() -> List[Path]:
    """All of them."""
    return [path for pattern in DOCUMENTS
            for path in sorted(ROOT.glob(pattern))]


def announces(line: str) -> bool:
    """Is what follows this line of RST a literal block, if it is indented?"""
    return line.endswith('::') or re.match(r'\.\. code:: ', line) is not None


def literal_blocks(path: Path) -> List[List[str]]:
    """The indented blocks of Markdown; of RST those that are announced."""
    blocks: List[List[str]] = []
    block: Optional[List[str]] = None
    markdown = path.suffix == '.md'
    announced = markdown
    for line in path.read_text(encoding='utf-8').split('\n') + ['.']:
        if block is not None and (not line.strip() or line[:1].isspace()):
            block.append(line.strip())
        elif line[:1].isspace() and line.strip() and announced:
            if markdown and not line.startswith('    '):
                continue
            block = [line.strip()]
            blocks.append(block)
        elif line.strip():
            block = None
            announced = markdown or announces(line.rstrip())
    return blocks
