#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Does scripts/check-meson see each way in which a test program can fail?

Programs that print TAP and end in all ways, run by a Meson project of their
own. Needs Meson and a C compiler, for a program that is not built.
"""

import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Iterable, List

ROOT = Path(__file__).resolve().parent.parent.parent
# QEMU's build has a Meson of its own.
PYVENV = ROOT / 'build' / 'qemu' / 'pyvenv'

# NAME: (what the shell does, the lines that are to be printed)
PROGRAMS = {
    'passes': ('echo 1..2; echo ok 1 /x86_64/a/b; echo ok 2 - c d',
               ['ok passes a/b', 'ok passes c d']),
    'suite/inside': ('echo 1..1; echo ok 1 /a', ['ok inside a']),
    'fails': ('echo 1..2; echo not ok 1 /a - ERROR:f.c:1: b; echo ok 2 /c; '
              'exit 1', ['not ok fails a - ERROR:f.c:1: b', 'ok fails c']),
    'fails-silently': ('echo 1..1; echo not ok 1 /a',
                       ['not ok fails-silently a']),
    'status': ('echo 1..1; echo ok 1 /a; exit 3',
               ['ok status a', 'not ok status: exit status 3']),
    'aborts': ('echo 1..2; echo ok 1 /a; kill -ABRT $$',
               ['ok aborts a', 'not ok aborts: died of signal 6']),
    'aborts-with-words': (
        'echo 1..2; echo ok 1 /a; echo "Bail out! ERROR:f.c:1: b"; '
        'echo c >&2; kill -ABRT $$',
        ['ok aborts-with-words a',
         'not ok aborts-with-words: died of signal 6: ERROR:f.c:1: b']),
    'complains': ('echo 1..1; echo ok 1 /a; echo b >&2; echo c >&2; exit 1',
                  ['ok complains a', 'not ok complains: exit status 1: c']),
    'bails': ('echo 1..2; echo ok 1 /a; echo Bail out!; exit 1',
              ['ok bails a', 'not ok bails: exit status 1']),
    'bails-well': ('echo 1..1; echo ok 1 /a; echo Bail out!',
                   ['ok bails-well a',
                    "not ok bails-well: Meson's verdict is ERROR"]),
    'too-few': ('echo 1..2; echo ok 1 /a',
                ['ok too-few a', 'not ok too-few: 1 of 2 tests reported']),
    'too-many': ('echo 1..1; echo ok 1 /a; echo ok 2 /b',
                 ['ok too-many a', 'ok too-many b',
                  'not ok too-many: 2 of 1 tests reported']),
    'one-twice': ('echo 1..2; echo ok 1 /a; echo ok 1 /a',
                  ['ok one-twice a', 'ok one-twice a',
                   "not ok one-twice: Meson's verdict is ERROR"]),
    'no-plan': ('echo ok 1 /a',
                ['ok no-plan a', 'not ok no-plan: no plan printed']),
    'silent': ('true', ['not ok silent: no plan printed']),
    'empty': ('echo 1..0', ['not ok empty: no test ran']),
    'unfinished': ('echo 1..1; echo "not ok 1 /a # TODO later"',
                   ['ok unfinished a',
                    'not ok unfinished: a test is not finished']),
    'skips-one': ('echo 1..2; echo "ok 1 /a # SKIP no KVM"; echo ok 2 /b',
                  ['skip skips-one a: no KVM', 'ok skips-one b']),
    'skips-without-reason': (
        'echo 1..1; echo "ok 1 /a # SKIP"',
        ['skip skips-without-reason a: the test gives no reason']),
    'control-characters': (
        r'printf "1..1\\nok 1 /a - \\001\\033b\\n"; printf "\\014" >&2; exit 3',
        ['ok control-characters a - b',
         'not ok control-characters: exit status 3']),
    'skips-all': ('echo "1..0 # SKIP no KVM"', ['skip skips-all: no KVM']),
    'skips-and-crashes': ('echo "1..0 # SKIP no KVM"; kill -SEGV $$',
                          ['not ok skips-and-crashes: died of signal 11']),
    'hangs': ('echo 1..2; echo ok 1 /a; exec sleep 1000',
              ['ok hangs a', 'not ok hangs: hung, ended after N s']),
}

PROJECT = """project('programs', 'c', meson_version: '>=1.0')
shell = find_program('sh')
foreach name, text : {%s}
  test(name, shell, args: ['-c', text], protocol: 'tap', suite: ['all', name],
       timeout: name == 'hangs' ? 1 : 60)
endforeach
test('unbuilt', executable('unbuilt', 'unbuilt.c'), protocol: 'tap')
test('gone', find_program('./gone'), protocol: 'tap')
"""


def is_bad(lines: List[str]) -> bool:
    """Whether one of the results is a failure."""
    return any(line.startswith('not ok') for line in lines)


class Verdicts(unittest.TestCase):
    """Of programs that end in a known way, with the system's Meson."""

    meson = [sys.executable, '/usr/bin/meson']

    @classmethod
    def setUpClass(cls) -> None:
        # pylint: disable=consider-using-with
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        source = Path(folder.name)
        texts = ', '.join(f"'{name}': '{text}'"
                          for name, (text, _) in PROGRAMS.items())
        (source / 'meson.build').write_text(PROJECT % texts)
        (source / 'unbuilt.c').touch()
        (source / 'gone').touch(mode=0o755)
        cls.build = source / 'build'
        subprocess.run([*cls.meson, 'setup', str(cls.build), str(source)],
                       check=True, capture_output=True)
        (source / 'gone').unlink()

    maxDiff = None

    def check_meson(self, names: Iterable[str]) -> subprocess.CompletedProcess:
        """Runs it with these tests; status 124 or 137 if it hangs."""
        return subprocess.run(
            ['timeout', '--kill-after=5', '60', sys.executable, '-B',
             str(ROOT / 'scripts' / 'check-meson'), str(self.build), *names],
            capture_output=True, text=True, check=False)

    def run_tests(self, names: Iterable[str], status: int) -> List[str]:
        """The results of scripts/check-meson with these tests."""
        run = self.check_meson(names)
        # Seldom, and not understood: Meson itself hangs when a program is gone.
        # A part of scripts/check that does has failed when its time is over.
        if run.returncode in (124, 137):
            run = self.check_meson(names)
        self.assertEqual(run.returncode, status, run.stdout + run.stderr)
        # How long a program hung is no constant.
        return [re.sub(r'after \d+ s', 'after N s', line)
                for line in run.stdout.splitlines()
                if line.startswith(('ok ', 'not ok ', 'skip '))]

    def test_each(self) -> None:
        """Each program gets its lines."""
        lines = [line for _, lines in PROGRAMS.values() for line in lines]
        self.assertCountEqual(self.run_tests(PROGRAMS, 1), lines)

    def test_good(self) -> None:
        """Nothing is wrong with programs that pass or skip."""
        good = {name: lines for name, (_, lines) in PROGRAMS.items()
                if not is_bad(lines)}
        lines = [line for lines in good.values() for line in lines]
        self.assertCountEqual(self.run_tests(good, 0), lines)

    def test_lax(self) -> None:
        """What Meson takes for good is no success."""
        for name in 'silent', 'no-plan', 'empty', 'unfinished':
            with self.subTest(name):
                self.assertTrue(is_bad(self.run_tests([name], 1)))

    def test_options(self) -> None:
        """An option goes to Meson, even with a space in it."""
        lines = self.run_tests(['passes', '--test-args=-m slow'], 0)
        self.assertEqual(lines, PROGRAMS['passes'][1])

    def test_no_program(self) -> None:
        """A program is not built or gone, or Meson does not know it."""
        for names in (['unbuilt'], ['passes', 'unbuilt'], ['gone'],
                      ['passes', 'gone'], ['passes', 'unknown-*']):
            with self.subTest(names):
                self.assertTrue(is_bad(self.run_tests(names, 1)))


@unittest.skipUnless((PYVENV / 'bin' / 'meson').exists(), 'QEMU is not built')
class VerdictsOfOwn(Verdicts):
    """The same, with the Meson that QEMU's build has."""

    meson = [str(PYVENV / 'bin' / 'meson')]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        (cls.build / 'pyvenv').symlink_to(PYVENV)


if __name__ == '__main__':
    unittest.main()
