#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""Tests of scripts/features.py: what it reads from Debian's packaging."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import List

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts/features.py'

CONTROL = '''\
Source: qemu
Build-Depends: debhelper-compat (= 13), flex
Build-Depends-Arch:
# always needed
 pkgconf, libglib2.0-dev:native,
# --enable-here\tamd64 arm64
 libhere-dev (>> 1.5.0~) [amd64 arm64],
# --enable-linux\tlinux-any
 liblinux-dev [linux-any],
# --enable-elsewhere\tarm64
 libelsewhere-dev [arm64],
# --enable-one --enable-two\tamd64\t# a remark
# and another one
 libone-dev [amd64], libtwo-dev,
# --enable-free
# --audio-drv-list=a,b\tamd64
 liba-dev, libb-dev,
##--enable-later todo
# --disable-never
 libxen-dev [linux-amd64],
# firmware, for tests only
 seabios [amd64] <!nocheck>,
 data (>> 1:9.2) [amd64]
   <!profile !other>,
Build-Depends-Indep:
# --enable-indep
 gcc-elsewhere,
Standards-Version: 4.7.2
'''

RULES = '''\
common_configure_opts = \\
\t--prefix=/usr \\
\t--disable-relocatable \\
\t--disable-strip \\
\t--disable-docs \\
\t${empty}
common_configure_opts += --disable-more

b/qemu/configured: configure
\tcd b/qemu && \\
\t    ../../configure ${common_configure_opts} \\
\t\t--$(if ${enable-system},enable,disable)-system \\
\t\t--enable-tools \\
\t\t--enable-modules \\
\t\t$(if ${enable-system},--enable-module-upgrades) \\
\t\t${QEMU_CONFIGURE_OPTIONS}

b/microvm/configured: configure
\tcd b/microvm && ../../configure --enable-vhost-crypto
'''


class Features(unittest.TestCase):
    """The script, with a packaging that was made for that."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.debian = Path(folder.name)
        (self.debian / 'control').write_text(CONTROL, 'utf-8')
        (self.debian / 'rules').write_text(RULES, 'utf-8')

    def run_it(self, what: str, *lacking: str) -> subprocess.CompletedProcess:
        """With what it printed."""
        return subprocess.run(
            [sys.executable, '-B', SCRIPT, what, self.debian, *lacking],
            capture_output=True, text=True, check=False)

    def lines(self, what: str, *lacking: str) -> List[str]:
        """What it printed; it must have been content."""
        result = self.run_it(what, *lacking)
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        return result.stdout.split('\n')[:-1]

    def test_packages(self) -> None:
        """Those for this machine, without the tests' and Xen's."""
        self.assertEqual(self.lines('packages'), [
            'pkgconf', 'libglib2.0-dev', 'libhere-dev', 'liblinux-dev',
            'libone-dev', 'libtwo-dev', 'liba-dev', 'libb-dev'])

    def test_options(self) -> None:
        """Those of the rules for the main build, then those of the control."""
        self.assertEqual(self.lines('options'), [
            '--disable-docs', '--disable-more', '--enable-tools',
            '--enable-here', '--enable-linux', '--enable-one', '--enable-two',
            '--enable-free', '--audio-drv-list=a,b', '--disable-never'])

    def test_nothing_lost(self) -> None:
        """A host that has all."""
        self.assertEqual(self.lines('lost'), [''])

    def test_lacking(self) -> None:
        """One package takes all options of its group with it, and no other."""
        options = self.lines('options', 'libtwo-dev')
        self.assertEqual(options[5:7], ['--disable-one', '--disable-two'])
        self.assertEqual(options[:5] + options[7:],
                         [option for option in self.lines('options')
                          if option not in ('--enable-one', '--enable-two')])
        self.assertEqual(self.lines('lost', 'libtwo-dev'),
                         ['one libtwo-dev', 'two libtwo-dev'])

    def test_lacking_driver(self) -> None:
        """Of a list of drivers configure finds what is there."""
        self.assertNotIn('audio', ' '.join(self.lines('options', 'libb-dev')))
        self.assertEqual(self.lines('lost', 'libb-dev'),
                         ['audio-drv-list=a,b libb-dev'])

    def test_other_packaging(self) -> None:
        """What is not understood is said, not guessed."""
        for name, text, reason in (
                ('control', CONTROL.replace('-Arch', '-Any'),
                 'no Build-Depends-Arch'),
                ('control', CONTROL.replace('# --', '# '), 'names no option'),
                ('rules', RULES.replace('b/qemu/', 'b/'), 'does not configure'),
                ('rules', None, 'No such file')):
            with self.subTest(reason):
                self.setUp()
                if text is None:
                    (self.debian / name).unlink()
                else:
                    (self.debian / name).write_text(text, 'utf-8')
                result = self.run_it('options')
                self.assertEqual((result.returncode, result.stdout), (1, ''))
                self.assertIn(reason, result.stderr)


if __name__ == '__main__':
    unittest.main()
